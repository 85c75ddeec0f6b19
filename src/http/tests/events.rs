use std::time::Duration;

use atelier_domain::{Progress, Timestamp};
use axum::body::BodyDataStream;
use futures::StreamExt as _;
use serde_json::json;

use super::*;
use crate::queue::JobMessage;

/// Server-sent events, one after another.
struct Events {
    body: BodyDataStream,
    text: String,
}

#[derive(Debug, Default, PartialEq)]
struct Event {
    id: Option<i64>,
    name: String,
    data: Value,
}

impl Events {
    async fn open(scene: &Scene, path: &str, last: Option<i64>) -> Self {
        let last = last.map(|id| id.to_string());
        let headers: Vec<_> = last.iter().map(|id| ("last-event-id", id.as_str())).collect();
        let response = scene.router.clone().oneshot(request(Method::GET, path, &headers, "")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The next frame with data; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        // Not per piece: a stream says now and then that it is alive.
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let frame: String = self.text.drain(..end + 2).collect();
                let mut event = Event::default();
                for line in frame.lines() {
                    let (field, value) = line.split_once(": ").unwrap_or((line, ""));
                    match field {
                        "id" => event.id = Some(value.parse().unwrap()),
                        "event" => value.clone_into(&mut event.name),
                        "data" => event.data = serde_json::from_str(value).unwrap(),
                        "retry" | "" => {}
                        other => panic!("{other}"),
                    }
                }
                if event.data.is_null() {
                    continue;
                }
                return Some(event);
            }
            let chunk = tokio::time::timeout_at(deadline, self.body.next()).await.expect("an event within a minute")?;
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }

    async fn until_end(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn statuses(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.data["status"].as_str().unwrap_or(&event.name)).collect()
}

#[tokio::test]
async fn a_job_is_watched_from_what_it_is_to_its_end() {
    let scene = Scene::new().await;
    let other = scene.submitted().await;
    let id = scene.submitted().await;
    let mut events = Events::open(&scene, &format!("/api/v1/jobs/{id}/events"), None).await;
    let first = events.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.data["status"].as_str()), ("job.updated", Some("queued")));
    assert_eq!(first.data, scene.get(&format!("/api/v1/jobs/{id}")).await.json(), "the job as everywhere else");
    let progress = Progress {
        phase: "run".into(),
        step: 1,
        steps: 4,
        fraction: 0.25,
        text: Some("a bo".into()),
        updated_at: Timestamp(0),
    };
    scene.app.store.announce(JobMessage::Progress { id, progress: progress.clone() });
    scene.app.store.announce(JobMessage::Progress { id: other, progress });
    scene.succeed(other, &[]).await;
    scene.succeed(id, &[]).await;
    let rest = events.until_end().await;
    assert_eq!(statuses(&rest), ["job.progress", "running", "succeeded"]);
    assert_eq!(rest[0].id, None, "progress is not durable");
    assert_eq!(
        rest[0].data,
        json!({"id": id, "progress": {"phase": "run", "step": 1, "steps": 4, "fraction": 0.25, "text": "a bo", "updated_at": "1970-01-01T00:00:00.000Z"}})
    );
    assert!(rest[1].id < rest[2].id && rest[1].id > first.id);
}

#[tokio::test]
async fn a_watcher_goes_on_where_it_left_off() {
    let scene = Scene::new().await;
    let mut events = Events::open(&scene, "/api/v1/events", None).await;
    let (a, b) = (scene.submitted().await, scene.submitted().await);
    let seen = [events.next().await.unwrap(), events.next().await.unwrap()];
    assert_eq!(seen.iter().map(|e| e.data["id"].as_str().unwrap()).collect::<Vec<_>>(), [a.to_string(), b.to_string()]);
    drop(events);
    scene.succeed(a, &[]).await;
    scene.call(Method::DELETE, &format!("/api/v1/jobs/{b}"), &[], "").await.expect(204);
    let mut events = Events::open(&scene, "/api/v1/events", seen[1].id).await;
    let c = scene.submitted().await;
    let mut rest = Vec::new();
    while rest.last().is_none_or(|event: &Event| event.data["id"] != json!(c)) {
        rest.push(events.next().await.unwrap());
    }
    let ids: Vec<_> = rest.iter().map(|event| event.id.unwrap()).collect();
    let first = seen[1].id.unwrap() + 1;
    assert_eq!(ids, (first..first + i64::try_from(ids.len()).unwrap()).collect::<Vec<_>>(), "no gap, no repetition");
    assert!(rest.iter().any(|event| event.name == "job.removed" && event.data == json!({"id": b})));
    // The header wins over the query.
    let path = format!("/api/v1/events?last_event_id={}", seen[0].id.unwrap());
    assert_eq!(Events::open(&scene, &path, None).await.next().await.unwrap().id, seen[1].id);
    assert_eq!(Events::open(&scene, &path, seen[1].id).await.next().await.unwrap().id, Some(first));
}

/// Watchers that connect while much is happening see every event once, whether it came from the store or live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_amid_events_neither_loses_nor_repeats_any() {
    let scene = Arc::new(Scene::new().await);
    let id = scene.submitted().await;
    let writer = tokio::spawn({
        let scene = scene.clone();
        async move {
            for _ in 0..150 {
                scene.app.queue.cancel(id).await.unwrap();
                scene.app.queue.retry(id).await.unwrap();
            }
            scene.app.store.last_seq().await.unwrap()
        }
    });
    let watchers: Vec<_> = (0..4)
        .map(|n| {
            let scene = scene.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut last = 0;
                // Breaks off and comes back, again and again.
                while last < 301 {
                    let mut events = Events::open(&scene, "/api/v1/events", Some(last)).await;
                    for _ in 0..=(n * 17) {
                        if last >= 301 {
                            break;
                        }
                        last = events.next().await.unwrap().id.unwrap();
                        seen.push(last);
                    }
                }
                seen
            })
        })
        .collect();
    assert_eq!(writer.await.unwrap(), 301);
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), (1..=301).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_watcher_that_was_too_slow_reads_the_store_again() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let mut events = Events::open(&scene, "/api/v1/events", None).await;
    scene.app.queue.cancel(id).await.unwrap();
    scene.app.queue.retry(id).await.unwrap();
    // More than the live channel holds: the two events above fall out of it.
    for _ in 0..3000 {
        let progress = Progress::queued(Timestamp(0));
        scene.app.store.announce(JobMessage::Progress { id, progress });
    }
    let mut ids = Vec::new();
    while ids.len() < 2 {
        ids.extend(events.next().await.unwrap().id);
    }
    assert_eq!(ids, [2, 3]);
}

#[tokio::test]
async fn an_ended_job_is_told_once_and_then_there_is_no_more() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    scene.succeed(id, &[]).await;
    let path = format!("/api/v1/jobs/{id}/events");
    let events = Events::open(&scene, &path, None).await.until_end().await;
    assert_eq!(statuses(&events), ["succeeded"]);
    // A browser comes back by itself; 204 makes it stop.
    let again = scene.call(Method::GET, &path, &[("last-event-id", &events[0].id.unwrap().to_string())], "").await;
    assert_eq!(again.expect(204).body, b"");
    let earlier = Events::open(&scene, &path, Some(events[0].id.unwrap() - 1)).await.until_end().await;
    assert_eq!(earlier, events);
}

#[tokio::test]
async fn a_job_whose_events_are_no_longer_kept_is_still_told() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    scene.app.store.trim_events(0).await.unwrap();
    let mut events = Events::open(&scene, &format!("/api/v1/jobs/{id}/events"), None).await;
    assert_eq!(events.next().await.unwrap().data["status"], "queued");
    scene.app.queue.cancel(id).await.unwrap();
    assert_eq!(statuses(&events.until_end().await), ["cancelled"]);
}

#[tokio::test]
async fn a_number_from_another_database_does_not_silence_the_stream() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    for last in [1_000_000, -5, i64::MIN, i64::MAX] {
        let mut events = Events::open(&scene, "/api/v1/events", Some(last)).await;
        scene.app.queue.cancel(id).await.unwrap();
        assert_eq!(events.next().await.unwrap().data["status"], "cancelled", "{last}");
        scene.app.queue.retry(id).await.unwrap();
    }
    for query in ["last_event_id=x", "last_event_id=1&x=2"] {
        scene.get(&format!("/api/v1/events?{query}")).await.problem(422, "invalid_request");
    }
}

#[tokio::test]
async fn streams_end_with_the_daemon() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let all = Events::open(&scene, "/api/v1/events", None).await;
    let one = Events::open(&scene, &format!("/api/v1/jobs/{id}/events"), None).await;
    scene.app.shutdown.cancel();
    assert!(all.until_end().await.is_empty());
    assert!(one.until_end().await.len() <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_is_alive() {
    // The database's pool would take the paused clock for its time-outs, so the stream is made alone.
    let silence = futures::stream::pending::<Result<axum::response::sse::Event, std::convert::Infallible>>();
    let response = axum::response::IntoResponse::into_response(super::super::sse::kept_alive(silence));
    let mut body = response.into_body().into_data_stream();
    let begun = tokio::time::Instant::now();
    assert_eq!(body.next().await.unwrap().unwrap(), ": keep-alive\n\n");
    assert_eq!(begun.elapsed().as_secs(), 15);
}
