//! The one writer: takes what has queued up, commits it as one transaction, then tells everybody.
//!
//! A write that fails is rolled back alone (savepoint); a commit that fails fails all of its batch, and none of it
//! is in the database then.

use std::sync::{Arc, Mutex, PoisonError};

use atelier_domain::Timestamp;
use futures::future::BoxFuture;
use sqlx::{Connection as _, SqliteConnection, SqlitePool, pool::PoolConnection};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{JobMessage, Message, StoreError};
use crate::failpoint;

/// Writes that one commit takes at most; bounds the time for which others wait.
const BATCH: usize = 256;

/// What a write works with: the connection inside its transaction, and the events that it causes.
pub(super) struct WriteTx {
    conn: PoolConnection<sqlx::Sqlite>,
    messages: Vec<Message>,
}

impl WriteTx {
    pub(super) fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }

    /// Records that something happened to a job; watchers hear of it after the commit.
    pub(super) async fn record(&mut self, event: JobMessage) -> Result<(), StoreError> {
        // The database gives the number: `atelier cleanup` may write beside a running daemon.
        let seq = sqlx::query_scalar("INSERT INTO job_events (job_id, created_at) VALUES (?1, ?2) RETURNING seq")
            .bind(event.job_id().to_string())
            .bind(Timestamp::now().0)
            .fetch_one(&mut *self.conn)
            .await?;
        self.recorded(seq, event);
        Ok(())
    }

    /// As [`Self::record`], for a caller whose own statement has written the event.
    pub(super) fn recorded(&mut self, seq: i64, event: JobMessage) {
        self.messages.push(Message { seq: Some(seq), event });
    }
}

type Op = Box<dyn for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<(), StoreError>> + Send>;

/// Whether the answer to a write is a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// On the disk when `write` returns; survives power loss.
    Synced,
    /// Survives the death of the daemon; after power loss it may not have happened. For what is merely true now, such
    /// as that a job runs: costs no fsync.
    Lazy,
}

struct Write {
    op: Op,
    durability: Durability,
    done: oneshot::Sender<Result<(), StoreError>>,
}

enum Command {
    Write(Write),
    Close(oneshot::Sender<()>),
}

#[derive(Clone)]
pub(super) struct Writer {
    commands: mpsc::Sender<Command>,
}

impl Writer {
    pub(super) fn spawn(pool: SqlitePool, messages: broadcast::Sender<Message>) -> Self {
        let (commands, receiver) = mpsc::channel(4 * BATCH);
        tokio::spawn(run(pool, messages, receiver));
        Self { commands }
    }

    /// Runs `op` inside the next transaction. When this returns `Ok`, the commit is on the disk.
    pub(super) async fn write<T, F>(&self, op: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        self.write_with(Durability::Synced, op).await
    }

    /// Like [`Self::write`], without the fsync.
    pub(super) async fn write_lazily<T, F>(&self, op: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        self.write_with(Durability::Lazy, op).await
    }

    async fn write_with<T, F>(&self, durability: Durability, op: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        let slot = Arc::new(Mutex::new(None));
        let (done, committed) = oneshot::channel();
        let op: Op = {
            let slot = slot.clone();
            Box::new(move |tx| {
                Box::pin(async move {
                    let value = op(tx).await?;
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
                    Ok(())
                })
            })
        };
        self.commands.send(Command::Write(Write { op, durability, done })).await.map_err(|_| StoreError::Closed)?;
        committed.await.map_err(|_| StoreError::Closed)??;
        let value = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or(StoreError::Closed)
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

async fn run(pool: SqlitePool, broadcast: broadcast::Sender<Message>, mut commands: mpsc::Receiver<Command>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        if commands.recv_many(&mut batch, BATCH).await == 0 {
            break;
        }
        let mut closing = None;
        let mut writes = Vec::with_capacity(batch.len());
        for command in batch.drain(..) {
            match command {
                Command::Write(write) => writes.push(write),
                Command::Close(done) => closing = Some(done),
            }
        }
        if !writes.is_empty() {
            commit(&pool, &broadcast, writes).await;
        }
        if let Some(done) = closing {
            pool.close().await;
            let _ = done.send(());
            break;
        }
    }
}

/// Who asked, and what the write itself came to; the commit is still to be seen.
type Answer = (oneshot::Sender<Result<(), StoreError>>, Result<(), StoreError>);

async fn commit(pool: &SqlitePool, broadcast: &broadcast::Sender<Message>, writes: Vec<Write>) {
    let mut answers = Vec::with_capacity(writes.len());
    let result = transaction(pool, writes, &mut answers).await;
    match result {
        Ok(messages) => {
            for message in messages {
                let _ = broadcast.send(message);
            }
            for (done, answer) in answers {
                let _ = done.send(answer);
            }
        }
        Err(error) => {
            tracing::error!(%error, "a transaction failed; none of it was written");
            for (done, answer) in answers {
                let _ = done.send(answer.and(Err(error.clone())));
            }
        }
    }
}

async fn transaction(
    pool: &SqlitePool,
    writes: Vec<Write>,
    answers: &mut Vec<Answer>,
) -> Result<Vec<Message>, StoreError> {
    // The pragma cannot change inside a transaction, and costs nothing where it stays as it is. One call for all three:
    // a call is a trip to the connection's thread and back, and they cost more than the statements.
    let begin = if writes.iter().any(|write| write.durability == Durability::Synced) {
        "PRAGMA synchronous = FULL; BEGIN IMMEDIATE; SAVEPOINT one"
    } else {
        "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE; SAVEPOINT one"
    };
    let opened = async {
        let mut conn = pool.acquire().await?;
        sqlx::query(begin).execute(&mut *conn).await?;
        Ok::<_, StoreError>(conn)
    };
    let conn = match opened.await {
        Ok(conn) => conn,
        Err(error) => {
            answers.extend(writes.into_iter().map(|write| (write.done, Ok(()))));
            return Err(error);
        }
    };
    let mut tx = WriteTx { conn, messages: Vec::new() };
    let mut broken = None;
    for (index, Write { op, done, .. }) in writes.into_iter().enumerate() {
        if broken.is_some() {
            answers.push((done, Ok(())));
            continue;
        }
        let answer = savepoint(&mut tx, op, index > 0).await.unwrap_or_else(|error| {
            broken = Some(error.clone());
            Err(error)
        });
        answers.push((done, answer));
    }
    let committed = match broken {
        Some(error) => Err(error),
        None => match failpoint::fails("store.commit").map_err(|e| StoreError::from(sqlx::Error::Io(e))) {
            Ok(()) => sqlx::query("COMMIT").execute(tx.conn()).await.map(|_| ()).map_err(StoreError::from),
            Err(error) => Err(error),
        },
    };
    match committed {
        Ok(()) => Ok(tx.messages),
        Err(error) => {
            // After a failed commit the connection's state is not worth guessing: roll back and open another.
            let _ = sqlx::query("ROLLBACK").execute(tx.conn()).await;
            let conn = tx.conn.detach();
            let _ = conn.close().await;
            Err(error)
        }
    }
}

/// Runs one write within a savepoint of its own: its error undoes it alone. The outer error means that the transaction
/// itself is lost. `renew`: the savepoint is still the one of the write before.
async fn savepoint(tx: &mut WriteTx, op: Op, renew: bool) -> Result<Result<(), StoreError>, StoreError> {
    let before = tx.messages.len();
    if renew {
        sqlx::query("RELEASE one; SAVEPOINT one").execute(tx.conn()).await?;
    }
    let answer = op(tx).await;
    if answer.is_err() {
        tx.messages.truncate(before);
        sqlx::query("ROLLBACK TO one").execute(tx.conn()).await?;
    }
    Ok(answer)
}
