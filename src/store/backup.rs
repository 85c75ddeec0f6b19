//! A database as a copy: made beside a running daemon, looked into, and made to fit other folders.

use std::path::{Path, PathBuf};

use atelier_domain::{Input, JobId, JobStatus, protocol::WirePath};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{SCHEMA_VERSION, StoreError, rows};

/// The files that one row of a copy speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFiles {
    pub id: JobId,
    pub status: JobStatus,
    /// Pictures that the job is made of, the mask among them.
    pub inputs: Vec<PathBuf>,
    pub outputs: Vec<PathBuf>,
}

/// Copies a database as it is at one moment to `into`, which must not exist. Writers are not held up.
///
/// # Errors
/// A database that cannot be read, or a copy that cannot be written.
pub async fn snapshot(database: &Path, into: &Path) -> Result<(), StoreError> {
    let mut connection = reader(database).await?;
    let copied = sqlx::query("VACUUM INTO ?1").bind(into.to_string_lossy().as_ref()).execute(&mut connection).await;
    let _ = connection.close().await;
    copied?;
    Ok(())
}

/// The version of a database's tables; see `SCHEMA_VERSION`.
///
/// # Errors
/// A file that cannot be opened, is no database, or was written by a newer version.
pub async fn schema_of(database: &Path) -> Result<i64, StoreError> {
    let mut connection = reader(database).await?;
    let found: Result<i64, _> = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await;
    let _ = connection.close().await;
    match found? {
        found if found > SCHEMA_VERSION => Err(StoreError::Newer { path: database.to_owned(), found }),
        found => Ok(found),
    }
}

/// All jobs of a copy with their files.
///
/// # Errors
/// A copy that cannot be read.
pub async fn job_files(copy: &Path) -> Result<Vec<JobFiles>, StoreError> {
    let mut connection = reader(copy).await?;
    let found = sqlx::query("SELECT * FROM image_jobs ORDER BY id").fetch_all(&mut connection).await;
    let _ = connection.close().await;
    found?
        .iter()
        .map(|row| {
            let record = rows::record(row)?;
            let mask = record.mask.map(|(_, path)| path);
            let inputs = record.input_paths.into_iter().chain(mask).collect();
            Ok(JobFiles { id: record.job.id, status: record.job.status, inputs, outputs: record.output_paths })
        })
        .collect()
}

/// Has the rows of a copy speak of files in other folders: `moves` are folders before and after, the innermost first.
///
/// # Errors
/// A copy that cannot be written; it is as it was then.
pub async fn relocate(copy: &Path, moves: &[(PathBuf, PathBuf)]) -> Result<(), StoreError> {
    let mut connection = SqliteConnectOptions::new().filename(copy).connect().await?;
    let moved = rewrite(&mut connection, moves).await;
    let _ = connection.close().await;
    moved
}

async fn rewrite(connection: &mut SqliteConnection, moves: &[(PathBuf, PathBuf)]) -> Result<(), StoreError> {
    let mut tx = connection.begin().await?;
    let found = sqlx::query("SELECT id, input_paths, output_paths, mask FROM image_jobs").fetch_all(&mut *tx).await?;
    for row in found {
        let id: String = row.try_get("id")?;
        let wrong = |error: serde_json::Error| StoreError::Row { id: id.clone(), what: error.to_string() };
        let paths = |column| -> Result<String, StoreError> {
            let paths: Vec<WirePath> = serde_json::from_str(row.try_get(column)?).map_err(wrong)?;
            Ok(rows::paths_json(paths.into_iter().map(|path| moved(path.0, moves))))
        };
        let mask: Option<String> = row.try_get("mask")?;
        let mask = mask.map(|text| serde_json::from_str::<(Input, WirePath)>(&text)).transpose().map_err(wrong)?;
        let mask = mask.map(|(input, path)| rows::to_json(&(input, WirePath(moved(path.0, moves)))));
        sqlx::query("UPDATE image_jobs SET input_paths = ?2, output_paths = ?3, mask = ?4 WHERE id = ?1")
            .bind(&id)
            .bind(paths("input_paths")?)
            .bind(paths("output_paths")?)
            .bind(mask)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Where a file lies once its folder has moved; where it lay, if it lay in none of them.
fn moved(path: PathBuf, moves: &[(PathBuf, PathBuf)]) -> PathBuf {
    let found = moves.iter().find_map(|(before, after)| Some(after.join(path.strip_prefix(before).ok()?)));
    found.unwrap_or(path)
}

async fn reader(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    Ok(options.busy_timeout(std::time::Duration::from_secs(30)).connect().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_moves_with_the_innermost_folder_that_it_lies_in() {
        let path = PathBuf::from;
        let moves = [(path("/a/outbox"), path("/out")), (path("/a"), path("/b"))];
        assert_eq!(moved(path("/a/outbox/x.png"), &moves), path("/out/x.png"));
        assert_eq!(moved(path("/a/spool/1/x"), &moves), path("/b/spool/1/x"));
        assert_eq!(moved(path("/ab/x"), &moves), path("/ab/x"));
    }

    #[tokio::test]
    async fn a_copy_is_whole_has_the_schema_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let (database, copy) = (dir.path().join("a.db"), dir.path().join("copy.db"));
        let store = crate::store::Store::open(&database).await.expect("opens");
        store.set_meta(crate::store::MetaKey::Paused, "1".into()).await.expect("written");
        snapshot(&database, &copy).await.expect("copied beside an open store");
        store.close().await;
        assert_eq!(schema_of(&copy).await.expect("a database"), SCHEMA_VERSION);
        assert_eq!(crate::store::check_file(&copy).await.expect("opens"), None);
        assert_eq!(job_files(&copy).await.expect("read"), []);
        assert!(snapshot(&database, &copy).await.is_err(), "nothing is written over");
        let opened = crate::store::Store::open(&copy).await.expect("opens");
        assert_eq!(opened.meta(crate::store::MetaKey::Paused).await.expect("read").as_deref(), Some("1"));
        opened.close().await;

        let mut connection = SqliteConnectOptions::new().filename(&copy).connect().await.expect("opens");
        sqlx::query("PRAGMA user_version = 99").execute(&mut connection).await.expect("written");
        connection.close().await.expect("closed");
        let error = schema_of(&copy).await.expect_err("newer");
        assert!(error.to_string().contains("a newer Atelier (schema 99"), "{error}");
    }
}
