//! What the daemon's database says, read from outside.

use std::path::{Path, PathBuf};

use atelier_domain::protocol::WirePath;
use serde_json::Value;
use sqlx::{ConnectOptions as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) name: String,
    pub(crate) error: Option<String>,
    pub(crate) outputs: Vec<PathBuf>,
    pub(crate) attempt: i64,
    pub(crate) crashes: i64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Books {
    pub(crate) entries: Vec<Entry>,
    /// apalis's rows, claims and hooks that wait: nothing of it may be left once all is quiet.
    pub(crate) pending: Vec<(&'static str, i64)>,
    /// What SQLite says about itself; empty where all is well.
    pub(crate) damage: Vec<String>,
}

pub(crate) fn read(data: &Path) -> Books {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(data.join("atelier.db")).read_only(true);
        let mut conn = options.connect().await.expect("the database opens");
        open(&mut conn).await.expect("the database can be read")
    })
}

async fn open(conn: &mut SqliteConnection) -> sqlx::Result<Books> {
    let mut books = Books::default();
    let rows = sqlx::query("SELECT id, status, source_name, error, output_paths, attempt, crashes FROM image_jobs");
    for row in rows.fetch_all(&mut *conn).await? {
        let paths: Vec<WirePath> = serde_json::from_str(row.try_get("output_paths")?).expect("a list of paths");
        let error: Option<String> = row.try_get("error")?;
        let error: Option<Value> = error.map(|text| serde_json::from_str(&text).expect("an error is JSON"));
        books.entries.push(Entry {
            id: row.try_get("id")?,
            status: row.try_get("status")?,
            name: row.try_get::<Option<String>, _>("source_name")?.unwrap_or_default(),
            error: error.map(|error| error["code"].as_str().unwrap_or_default().to_owned()),
            outputs: paths.into_iter().map(|path| path.0).collect(),
            attempt: row.try_get("attempt")?,
            crashes: row.try_get("crashes")?,
        });
    }
    for (what, sql) in [
        ("deliveries of apalis", "SELECT count(*) FROM Jobs"),
        ("claims of the inbox", "SELECT count(*) FROM inbox_claims"),
        ("ends whose sources wait to be moved", "SELECT count(*) FROM image_jobs WHERE hooks_due = 1"),
        (
            "statuses that are miscounted",
            "SELECT count(*) FROM job_counts c WHERE n <> (SELECT count(*) FROM image_jobs j WHERE j.status = c.status)",
        ),
        ("keys without a job", "SELECT count(*) FROM idempotency_keys WHERE job_id NOT IN (SELECT id FROM image_jobs)"),
    ] {
        books.pending.push((what, sqlx::query_scalar(sql).fetch_one(&mut *conn).await?));
    }
    let verdicts: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut *conn).await?;
    books.damage.extend(verdicts.into_iter().filter(|verdict| verdict != "ok"));
    let strangers = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut *conn).await?.len();
    if strangers > 0 {
        books.damage.push(format!("{strangers} rows refer to none"));
    }
    Ok(books)
}
