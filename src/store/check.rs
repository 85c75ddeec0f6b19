//! Looking at a database file without taking part in it: nothing is created, migrated or locked for long.

use std::path::Path;

use atelier_domain::Timestamp;
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use super::StoreError;

/// What SQLite finds wrong first; `None` where all is well. Also beside a running daemon.
///
/// # Errors
/// A file that cannot be opened, or is no database.
pub async fn check_file(path: &Path) -> Result<Option<String>, StoreError> {
    let mut connection = SqliteConnectOptions::new().filename(path).read_only(true).connect().await?;
    let found: Result<String, _> = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await;
    let _ = connection.close().await;
    Ok(Some(found?).filter(|text| text != "ok"))
}

/// When a job was last changed; `None` where there are none.
///
/// # Errors
/// A file that cannot be opened, or is no database of ours.
pub async fn newest_moment(path: &Path) -> Result<Option<Timestamp>, StoreError> {
    let mut connection = SqliteConnectOptions::new().filename(path).read_only(true).connect().await?;
    let newest: Result<Option<i64>, _> =
        sqlx::query_scalar("SELECT created_at FROM job_events ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut connection)
            .await;
    let _ = connection.close().await;
    Ok(newest?.map(Timestamp))
}
