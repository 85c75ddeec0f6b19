//! Whether the database is whole.

use super::Check;
use crate::{config::Config, store::check_file};

const NAME: &str = "database";

pub(super) async fn check(config: &Config) -> Check {
    let path = config.paths.data.join("atelier.db");
    if !path.exists() {
        return Check::ok(NAME, format!("{} is made at the first start", path.display()));
    }
    match check_file(&path).await {
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
