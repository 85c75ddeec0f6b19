//! Whether the database is whole.

use std::path::Path;

use super::Check;
use crate::config::Config;

const NAME: &str = "database";

pub(super) async fn check(config: &Config) -> Check {
    let path = config.paths.data.join("atelier.db");
    if !path.exists() {
        return Check::ok(NAME, format!("{} is made at the first start", path.display()));
    }
    match quick_check(&path).await {
        Ok(None) => Check::ok(NAME, format!("{} is whole", path.display())),
        Ok(Some(damage)) => Check::fail(
            NAME,
            format!("{} is damaged: {damage}", path.display()),
            "stop the daemon, keep a copy of the file with its -wal, and restore a backup",
        ),
        Err(error) => Check::fail(
            NAME,
            format!("{} cannot be read: {error}", path.display()),
            "is it readable for this user, and of this version?",
        ),
    }
}

// lead: replace by a function of `store`, which alone speaks SQL.
/// What SQLite finds first; `None` where all is well. Reads only, also beside a running daemon.
async fn quick_check(path: &Path) -> Result<Option<String>, sqlx::Error> {
    use sqlx::{ConnectOptions as _, Connection as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.connect().await?;
    let found: Result<String, _> = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await;
    let _ = connection.close().await;
    found.map(|text| Some(text).filter(|text| text != "ok"))
}
