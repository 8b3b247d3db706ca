//! Mode `basic`: one transcript of what a component does.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, PublishErrorKind, RequestErrorKind, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Counts, PATIENCE, Transcript, connect, options};

type Failure = Box<dyn std::error::Error>;

/// Runs all steps; true if all was as expected.
pub(crate) async fn basic(url: &str, prefix: &str, events: Sender<Value>) -> bool {
    let mut transcript = Transcript::new(events);
    if let Err(error) = steps(url, prefix, &mut transcript).await {
        transcript.step("failed", json!(error.to_string()), json!(null));
    }
    transcript.content
}

async fn steps(url: &str, prefix: &str, t: &mut Transcript) -> Result<(), Failure> {
    let counts = Arc::new(Counts::default());
    let client = connect(url, &counts).await?;
    let info = client.server_info();
    let got = json!([info.headers, info.max_payload]);
    t.step("connect", got, json!([true, 1_048_576]));
    delivery(&client, prefix, t).await?;
    requests(&client, prefix, t).await?;
    limits(&client, prefix, t).await?;
    payloads(&client, prefix, t).await?;
    neighbours(url, &client, prefix, &counts, t).await?;
    t.step("still connected", json!(counts.values()), json!([0, 0]));
    client.drain().await?;
    Ok(())
}

async fn delivery(client: &Client, prefix: &str, t: &mut Transcript) -> Result<(), Failure> {
    let mut plain = client.subscribe(format!("{prefix}.plain")).await?;
    publish_numbers(client, &format!("{prefix}.plain"), 5).await?;
    let got = bodies(&collect(&mut plain, 5).await);
    t.step("plain", json!(got), json!(["0", "1", "2", "3", "4"]));

    let mut star = client.subscribe(format!("{prefix}.w.*.x")).await?;
    let mut tail = client.subscribe(format!("{prefix}.w.>")).await?;
    for end in ["a.x", "b.x", "a.y.z"] {
        client
            .publish(format!("{prefix}.w.{end}"), "".into())
            .await?;
    }
    let got = subjects(&collect(&mut star, 2).await, prefix);
    t.step("wildcard star", json!(got), json!(["w.a.x", "w.b.x"]));
    let got = subjects(&collect(&mut tail, 3).await, prefix);
    t.step(
        "wildcard tail",
        json!(got),
        json!(["w.a.x", "w.b.x", "w.a.y.z"]),
    );

    let queue = format!("{prefix}.queue");
    let mut members = Vec::new();
    for _ in 0..3 {
        let group = "workers".to_owned();
        members.push(client.queue_subscribe(queue.clone(), group).await?);
    }
    publish_numbers(client, &queue, 30).await?;
    let mut all = futures_util::stream::select_all(members);
    let mut got = Vec::new();
    while got.len() < 30 {
        match timeout(PATIENCE, all.next()).await {
            Ok(Some(message)) => got.push(message),
            _ => break,
        }
    }
    let mut numbers = bodies(&got);
    numbers.sort_unstable();
    numbers.dedup();
    t.step("queue group", json!(numbers.len()), json!(30));
    Ok(())
}

async fn requests(client: &Client, prefix: &str, t: &mut Transcript) -> Result<(), Failure> {
    let service = format!("{prefix}.service");
    let mut questions = client.subscribe(service.clone()).await?;
    let answerer = client.clone();
    let answers = tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let body = [b"re ", question.payload.as_ref()].concat();
            if let Some(reply) = question.reply {
                let _ = answerer.publish(reply, body.into()).await;
            }
        }
    });
    let reply = client.request(service, "question".into()).await?;
    let got = String::from_utf8_lossy(&reply.payload);
    t.step("request", json!(got), json!("re question"));
    answers.abort();

    let outcome = client.request(format!("{prefix}.nobody"), "".into()).await;
    let got = outcome.map_err(|error| error.kind()).err();
    let none = matches!(got, Some(RequestErrorKind::NoResponders));
    t.step("no responders", json!(none), json!(true));

    let mut sub = client.subscribe(format!("{prefix}.headers")).await?;
    let mut headers = HeaderMap::new();
    headers.append("one", "1");
    headers.append("many", "a");
    headers.append("many", "b: c");
    client
        .publish_with_headers(format!("{prefix}.headers"), headers.clone(), "body".into())
        .await?;
    let got = collect(&mut sub, 1).await;
    let same = got
        .first()
        .is_some_and(|m| m.headers.as_ref() == Some(&headers));
    t.step(
        "headers",
        json!([same, bodies(&got)]),
        json!([true, ["body"]]),
    );
    Ok(())
}

async fn limits(client: &Client, prefix: &str, t: &mut Transcript) -> Result<(), Failure> {
    let mut few = client.subscribe(format!("{prefix}.max")).await?;
    few.unsubscribe_after(3).await?;
    publish_numbers(client, &format!("{prefix}.max"), 5).await?;
    let got = bodies(&collect(&mut few, 5).await);
    t.step("unsubscribe with max", json!(got), json!(["0", "1", "2"]));

    let gone = format!("{prefix}.gone");
    let mut watcher = client.subscribe(gone.clone()).await?;
    let mut leaver = client.subscribe(gone.clone()).await?;
    publish_numbers(client, &gone, 1).await?;
    let heard = collect(&mut leaver, 1).await.len();
    leaver.unsubscribe().await?;
    publish_numbers(client, &gone, 1).await?;
    let watched = collect(&mut watcher, 2).await.len();
    // The watcher's copy came later on the same connection: no need for patience.
    let unheard = timeout(Duration::from_millis(100), leaver.next()).await;
    let unheard = usize::from(matches!(unheard, Ok(Some(_))));
    let got = json!([heard, watched, unheard]);
    t.step("unsubscribe", got, json!([1, 2, 0]));

    let subject = format!("{prefix}.drained");
    let mut drained = client.subscribe(subject.clone()).await?;
    let mut watcher = client.subscribe(subject.clone()).await?;
    publish_numbers(client, &subject, 5).await?;
    // Behind the watcher's last message, the drained one has all in its queue.
    collect(&mut watcher, 5).await;
    drained.drain().await?;
    let got = bodies(&collect(&mut drained, 5).await);
    t.step(
        "drain a subscription",
        json!(got),
        json!(["0", "1", "2", "3", "4"]),
    );
    Ok(())
}

async fn payloads(client: &Client, prefix: &str, t: &mut Transcript) -> Result<(), Failure> {
    let subject = format!("{prefix}.binary");
    let mut sub = client.subscribe(subject.clone()).await?;
    let protocol = b"PUB a 1\r\nx\r\nMSG a 1 1\r\nPING\r\n-ERR 'x'\r\n".to_vec();
    let most = client.server_info().max_payload;
    let big: Vec<u8> = (0..most).map(|i| (i * 7 % 251) as u8).collect();
    let sent = [(0..=255).collect(), protocol, vec![], b"\r\n".to_vec(), big];
    for payload in &sent {
        client
            .publish(subject.clone(), payload.clone().into())
            .await?;
    }
    let got = collect(&mut sub, sent.len()).await;
    let same: Vec<_> = got
        .iter()
        .zip(&sent)
        .map(|(m, s)| m.payload == *s)
        .collect();
    t.step(
        "binary and largest payload",
        json!(same),
        json!([true, true, true, true, true]),
    );

    let outcome = client.publish(subject, vec![0; most + 1].into()).await;
    let kind = outcome.map_err(|error| error.kind()).err();
    let refused = kind == Some(PublishErrorKind::MaxPayloadExceeded);
    t.step("too large", json!(refused), json!(true));
    Ok(())
}

async fn neighbours(
    url: &str,
    client: &Client,
    prefix: &str,
    counts: &Arc<Counts>,
    t: &mut Transcript,
) -> Result<(), Failure> {
    let subject = format!("{prefix}.n");
    let mut heard = client.subscribe(subject.clone()).await?;
    // A round trip: the broker knows the subscription before the neighbour publishes.
    publish_numbers(client, &subject, 1).await?;
    collect(&mut heard, 1).await;
    let deaf = options(url, counts).no_echo().connect(url).await?;
    let mut own = deaf.subscribe(subject.clone()).await?;
    publish_numbers(&deaf, &subject, 5).await?;
    let got = bodies(&collect(&mut heard, 5).await);
    t.step(
        "other connection",
        json!(got),
        json!(["0", "1", "2", "3", "4"]),
    );
    client.publish(subject, "last".into()).await?;
    let got = bodies(&collect(&mut own, 1).await);
    t.step("no echo", json!(got), json!(["last"]));
    deaf.drain().await?;
    let ended = timeout(PATIENCE, own.next())
        .await
        .is_ok_and(|m| m.is_none());
    t.step("drain a connection", json!(ended), json!(true));
    Ok(())
}

async fn publish_numbers(client: &Client, subject: &str, count: u32) -> Result<(), Failure> {
    for i in 0..count {
        let body = i.to_string().into();
        client.publish(subject.to_owned(), body).await?;
    }
    Ok(())
}

/// Up to `count` messages, fewer if the subscription ends.
async fn collect(sub: &mut Subscriber, count: usize) -> Vec<Message> {
    let mut got = Vec::new();
    while got.len() < count {
        match timeout(PATIENCE, sub.next()).await {
            Ok(Some(message)) => got.push(message),
            _ => break,
        }
    }
    got
}

fn bodies(messages: &[Message]) -> Vec<String> {
    let text = |m: &Message| String::from_utf8_lossy(&m.payload).into_owned();
    messages.iter().map(text).collect()
}

fn subjects(messages: &[Message], prefix: &str) -> Vec<String> {
    let rest = |m: &Message| m.subject.as_str()[prefix.len() + 1..].to_owned();
    messages.iter().map(rest).collect()
}
