//! Whether a daemon answers, and to this user.

use serde_json::Value;

use super::Check;
use crate::{
    cli::{
        args::Global,
        client::{self, Client},
        error::{CliError, Exit},
    },
    config::Config,
};

const NAME: &str = "daemon";

pub(super) async fn check(global: &Global, config: &Config) -> Check {
    let client = client::explicit_token(global).and_then(|token| match &global.server {
        Some(server) => Client::at(server, token),
        None => Client::of_config(config, token),
    });
    let client = match client {
        Ok(client) => client,
        Err(error) => return refused(&error),
    };
    if let Err(error) = client.health().await {
        if error.exit == Exit::Unreachable {
            return Check::warn(NAME, format!("none answers at {}", client.base()), "`atelier serve` starts one");
        }
        return refused(&error);
    }
    match client.get::<Value>("/queue").await {
        Ok(queue) => {
            let flag = |name: &str| queue.get(name).and_then(Value::as_bool).unwrap_or(false);
            let blocked = queue.get("blocked").and_then(Value::as_str);
            if let Some(why) = blocked {
                let hint = "the daemon goes on by itself once that is over; its log tells more";
                return Check::warn(NAME, format!("{} answers; its queue stands still: {why}", client.base()), hint);
            }
            if flag("paused") {
                let message = format!("{} answers; its queue is paused", client.base());
                return Check::warn(NAME, message, "`atelier queue resume` lets it go on");
            }
            Check::ok(NAME, format!("{} answers", client.base()))
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &CliError) -> Check {
    Check::fail(NAME, error.message.clone(), error.hint.clone())
}
