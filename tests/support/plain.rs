//! What SQLite itself gives: the measure for the rate of enqueues.

use std::time::{Duration, Instant};

use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

/// Rows a second that `connections` insert, one row a transaction, with `synchronous = FULL`.
pub(crate) async fn inserts(connections: usize, time: Duration) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(dir.path().join("plain.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(30));
    let mut first: SqliteConnection = options.connect().await.unwrap();
    sqlx::query("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT NOT NULL)").execute(&mut first).await.unwrap();
    let deadline = Instant::now() + time;
    let begun = Instant::now();
    let workers = (0..connections).map(|_| {
        let options = options.clone();
        tokio::spawn(async move {
            let mut conn: SqliteConnection = options.connect().await.unwrap();
            let text = "x".repeat(600);
            let mut n = 0;
            while Instant::now() < deadline {
                sqlx::query("INSERT INTO t (text) VALUES (?1)").bind(&text).execute(&mut conn).await.unwrap();
                n += 1;
            }
            n
        })
    });
    let mut total = 0;
    for worker in workers.collect::<Vec<_>>() {
        total += worker.await.unwrap();
    }
    f64::from(total) / begun.elapsed().as_secs_f64()
}
