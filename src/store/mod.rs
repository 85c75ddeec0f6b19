//! The database: all SQL, and nothing but SQL.
//!
//! One connection writes, a few read. Writes go through [`writer`], which commits whatever has queued up as one
//! transaction: with `synchronous = FULL` a commit costs an fsync, and eight clients share it. What changes a job
//! also records an event, and watchers hear of it after the commit, in the order of the commits.

mod backup;
mod check;
mod delivery;
mod inbox;
mod insert;
mod keys;
mod message;
mod meta;
mod read;
mod rows;
mod transitions;
mod webhooks;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use apalis_sqlite::SqliteStorage;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Notify, broadcast};

use self::writer::Writer;
pub use self::{
    backup::{JobFiles, job_files, relocate, schema_of, snapshot},
    check::{check_file, newest_moment},
    delivery::{NextDelivery, QUEUE, Recovered},
    inbox::InboxClaim,
    insert::{Insert, Inserted},
    message::{JobMessage, Message},
    meta::MetaKey,
    read::{Counts, JobFilter, JobPage, Removable, StoredEvent},
    rows::{JobRecord, StartedJob},
    transitions::{CancelOutcome, Published, Refusal},
    webhooks::{WebhookBacklog, WebhookMessage},
};

/// Messages that a slow watcher may fall behind before it is told to look again.
const MESSAGES: usize = 1024;

/// Raised with each migration that an older program must not open.
pub const SCHEMA_VERSION: i64 = 2;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database: {0}")]
    Sqlx(Arc<sqlx::Error>),
    #[error("database: the row of job {id} cannot be read: {what}")]
    Row { id: String, what: String },
    #[error("{} was written by a newer Atelier (schema {found}, this one knows {SCHEMA_VERSION}): install that version again, or restore a backup", path.display())]
    Newer { path: PathBuf, found: i64 },
    #[error("the database is closed")]
    Closed,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlx(Arc::new(error))
    }
}

impl Clone for StoreError {
    fn clone(&self) -> Self {
        match self {
            Self::Sqlx(error) => Self::Sqlx(error.clone()),
            Self::Row { id, what } => Self::Row { id: id.clone(), what: what.clone() },
            Self::Newer { path, found } => Self::Newer { path: path.clone(), found: *found },
            Self::Closed => Self::Closed,
        }
    }
}

impl StoreError {
    /// SQLite's primary result code, where SQLite has spoken.
    fn sqlite_code(&self) -> Option<i32> {
        let Self::Sqlx(error) = self else { return None };
        let sqlx::Error::Database(database) = &**error else { return None };
        database.code()?.parse::<i32>().ok().map(|code| code & 0xff)
    }

    /// What the operating system said, where the driver has met it before SQLite did.
    fn io_kind(&self) -> Option<std::io::ErrorKind> {
        let Self::Sqlx(error) = self else { return None };
        if let sqlx::Error::Io(error) = &**error { Some(error.kind()) } else { None }
    }

    /// SQLITE_FULL: nothing was written, and it works again once there is room.
    pub fn is_disk_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        self.sqlite_code() == Some(13) || matches!(self.io_kind(), Some(StorageFull | QuotaExceeded))
    }

    /// SQLITE_IOERR, SQLITE_CANTOPEN, SQLITE_READONLY: the file system refuses.
    pub fn is_io(&self) -> bool {
        matches!(self.sqlite_code(), Some(8 | 10 | 14)) || (self.io_kind().is_some() && !self.is_disk_full())
    }

    /// SQLITE_BUSY, SQLITE_LOCKED: somebody else, such as a backup, has held the database for longer than we wait.
    pub fn is_busy(&self) -> bool {
        matches!(self.sqlite_code(), Some(5 | 6))
    }
}

/// A handle on the open database. Cloning is cheap.
#[derive(Clone)]
pub struct Store {
    read: SqlitePool,
    /// apalis's own: a fetch must not wait behind a page of a list.
    delivery: SqlitePool,
    writer: Writer,
    messages: broadcast::Sender<Message>,
    /// Somebody is to be told something.
    webhooks: Arc<Notify>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An acknowledged job survives power loss.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // apalis's worker dies of any SQLITE_BUSY, so nobody may be told one while another merely writes.
        .busy_timeout(Duration::from_secs(30))
        .pragma("journal_size_limit", "67108864")
        .optimize_on_close(true, 400)
}

impl Store {
    /// Opens or creates the database and brings its tables up to date.
    ///
    /// # Errors
    /// A file that cannot be opened, is no database, or was written by a newer version.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // One connection first: several at once on a new file fight over the change to WAL, which no busy timeout
        // covers.
        let migrate = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options(path).auto_vacuum(sqlx::sqlite::SqliteAutoVacuum::Incremental))
            .await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&migrate).await?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer { path: path.to_owned(), found });
        }
        // Never `SqliteStorage::setup()`: it leaves a pooled connection with `synchronous = OFF`.
        SqliteStorage::migrations().run(&migrate).await.map_err(sqlx::Error::from)?;
        let mut ours = sqlx::migrate!("./migrations");
        // apalis's migrations are kept in `_sqlx_migrations`; two migrators cannot share a table.
        ours.dangerous_set_table_name("_atelier_migrations");
        let migrated = ours.run(&migrate).await;
        // A migration that we do not know was written by one who knows more.
        if let Err(sqlx::migrate::MigrateError::VersionMissing(found)) = migrated {
            return Err(StoreError::Newer { path: path.to_owned(), found });
        }
        migrated.map_err(sqlx::Error::from)?;
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA user_version = {SCHEMA_VERSION}"))).execute(&migrate).await?;
        migrate.close().await;

        let pool = |connections: u32, options: SqliteConnectOptions| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .min_connections(0)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .connect_lazy_with(options)
        };
        let read = pool(4, options(path).pragma("query_only", "ON"));
        // Each savepoint, and each statement that might fail half-way, keeps the pages that it changes: in a file of its
        // own, opened and removed at every commit, where nothing says that memory will do.
        let writing = || options(path).pragma("temp_store", "MEMORY");
        // A claim that a power cut undoes is claimed again; it needs no fsync.
        let delivery = pool(2, writing().synchronous(SqliteSynchronous::Normal));
        let (messages, _) = broadcast::channel(MESSAGES);
        let webhooks = Arc::new(Notify::new());
        let writer = Writer::spawn(pool(1, writing()), messages.clone(), webhooks.clone());
        Ok(Self { read, delivery, writer, messages, webhooks })
    }

    /// What happens to jobs from now on. A receiver that falls behind is told so, and reads the store again.
    pub fn subscribe(&self) -> broadcast::Receiver<Message> {
        self.messages.subscribe()
    }

    /// Tells watchers something that is not worth a row, such as a step of progress.
    pub fn announce(&self, event: JobMessage) {
        // No receiver is no error.
        let _ = self.messages.send(Message { seq: None, event });
    }

    /// The pool that apalis fetches from.
    pub fn delivery_pool(&self) -> &SqlitePool {
        &self.delivery
    }

    /// Commits what is queued and closes all connections.
    pub async fn close(&self) {
        self.writer.close().await;
        self.delivery.close().await;
        self.read.close().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn what_the_system_says_counts_like_what_sqlite_says() {
        let of = |kind: ErrorKind| StoreError::from(sqlx::Error::Io(Error::from(kind)));
        assert!(of(ErrorKind::StorageFull).is_disk_full() && !of(ErrorKind::StorageFull).is_io());
        assert!(of(ErrorKind::PermissionDenied).is_io() && !of(ErrorKind::PermissionDenied).is_disk_full());
        assert!(!StoreError::Closed.is_io() && !StoreError::from(sqlx::Error::RowNotFound).is_io());
    }

    #[tokio::test]
    async fn a_database_that_somebody_else_holds_is_busy() {
        use sqlx::ConnectOptions as _;
        let dir = tempfile::tempdir().expect("temp dir");
        let options = options(&dir.path().join("a.db")).busy_timeout(Duration::ZERO);
        let mut holder = options.connect().await.expect("opens");
        let mut other = options.connect().await.expect("opens");
        sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.expect("free");
        let error = sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect_err("held");
        let error = StoreError::from(error);
        assert!(error.is_busy() && !error.is_io() && !error.is_disk_full(), "{error}");
    }
}
