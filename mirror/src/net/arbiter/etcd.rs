//! etcd, by the JSON form of its API: one transaction for each question, so that its quorum is what decides.
//!
//! Keys: `diskferry/arbiter/id`, `diskferry/arbiter/probe` with the time of the last one, and `diskferry/arbiter/ballot/DISK/SESSION/ATTEMPT` with the side as its value.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use super::{Arbiter, already_there, is_the_one, none_there, tls};
use crate::arbiter::{Ballot, Side};
use crate::error::{Error, ErrorKind, Result};

const ID: &str = "diskferry/arbiter/id";
const PROBE: &str = "diskferry/arbiter/probe";
const BALLOTS: &str = "diskferry/arbiter/ballot/";
/// How long one member may take to answer.
const WITHIN: Duration = Duration::from_secs(3);
/// The longest answer.
const MAX_ANSWER: usize = 16 << 20;

/// The members of a cluster.
pub(super) struct Etcd {
    /// `HOST:PORT` of each.
    members: Vec<String>,
    /// How to speak TLS to them, if they want that.
    tls: Option<TlsConnector>,
}

impl Etcd {
    /// From `http://HOST:PORT[,…]`, or the same with `https`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let scheme = if text.starts_with("https:") {
            "https://"
        } else {
            "http://"
        };
        let members = text.split(',').map(|member| {
            let at = member.strip_prefix(scheme)?.trim_end_matches('/');
            let (host, port) = at.rsplit_once(':')?;
            let valid = !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok();
            valid.then(|| at.to_owned())
        });
        let members = members.collect::<Option<Vec<_>>>().ok_or_else(|| {
            let what = format!(
                "etcd:{text} is no etcd: say etcd:http://HOST:PORT[,http://HOST:PORT], or https for all of them"
            );
            Error::new(ErrorKind::InvalidArgument, what)
        })?;
        let tls = (scheme == "https://").then(tls::from_environment);
        let tls = tls.transpose()?;
        Ok(Self { members, tls })
    }

    /// Ask all members at once; the first answer counts. What is asked may be asked again and again.
    fn call(&self, path: &'static str, body: &Value) -> io::Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(async {
            let mut asked = JoinSet::new();
            for member in self.members.clone() {
                let body = body.to_string();
                let tls = self.tls.clone();
                asked.spawn(async move {
                    let answer = ask(&member, tls.as_ref(), (path, body));
                    let answer = tokio::time::timeout(WITHIN, answer).await;
                    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                    answer.map_err(|e| io::Error::new(e.kind(), format!("{member}: {e}")))
                });
            }
            let mut last = io::Error::other("no member is known");
            while let Some(answer) = asked.join_next().await {
                match answer.map_err(io::Error::other).flatten() {
                    Ok(answer) => return Ok(answer),
                    Err(e) => last = e,
                }
            }
            Err(last)
        });
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
        answer
    }

    /// Put `value` under `key` if nothing is there and the arbiter is `id`; what is there then.
    fn put_once(&self, key: &str, value: &str, id: Option<Uuid>) -> io::Result<(bool, Value)> {
        let mut compare = vec![
            json!({"key": text(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}),
        ];
        if let Some(id) = id {
            let id = text(&id.to_string());
            compare
                .push(json!({"key": text(ID), "target": "VALUE", "result": "EQUAL", "value": id}));
        }
        let range = |key: &str| json!({"request_range": {"key": text(key)}});
        let answer = self.call(
            "/v3/kv/txn",
            &json!({
                "compare": compare,
                "success": [{"request_put": {"key": text(key), "value": text(value)}}],
                "failure": [range(ID), range(key)],
            }),
        )?;
        let done = answer.get("succeeded").and_then(Value::as_bool);
        Ok((done.unwrap_or(false), answer))
    }
}

/// Bytes as they are written in JSON.
fn text(text: &str) -> String {
    BASE64.encode(text)
}

fn no_answer(what: &str) -> io::Error {
    let what = format!("etcd answered what was not asked: {what}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The keys and values of a range, in an answer or a part of one.
fn pairs(range: &Value) -> io::Result<Vec<(String, String)>> {
    let Some(pairs) = range.get("kvs") else {
        return Ok(Vec::new());
    };
    let decode = |pair: &Value, field: &str| {
        let bytes = BASE64.decode(pair.get(field)?.as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let pairs = pairs.as_array().ok_or_else(|| no_answer("no pairs"))?;
    let pairs = pairs
        .iter()
        .map(|pair| Some((decode(pair, "key")?, decode(pair, "value")?)));
    let pairs = pairs.collect::<Option<Vec<_>>>();
    pairs.ok_or_else(|| no_answer("a pair without a value"))
}

/// The value that the transaction which did nothing found in its range with that number.
fn found(answer: &Value, number: usize) -> io::Result<Option<String>> {
    let range = answer
        .get("responses")
        .and_then(|responses| responses.get(number)?.get("response_range"))
        .ok_or_else(|| no_answer("no ranges"))?;
    Ok(pairs(range)?.pop().map(|(_, value)| value))
}

fn parse_id(value: Option<String>) -> io::Result<Uuid> {
    let value = value.ok_or_else(none_there)?;
    value.parse().map_err(|_| no_answer("a name that is none"))
}

fn parse_side(value: &str) -> io::Result<Side> {
    match value {
        "source" => Ok(Side::Source),
        "target" => Ok(Side::Target),
        _ => Err(no_answer("a side that is none")),
    }
}

fn parse_ballot(key: &str) -> Option<Ballot> {
    let mut parts = key.strip_prefix(BALLOTS)?.split('/');
    let ballot = Ballot {
        disk: parts.next()?.parse().ok()?,
        session: parts.next()?.parse().ok()?,
        attempt: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(ballot)
}

fn key_of(ballot: Ballot) -> String {
    let (disk, session) = (ballot.disk, ballot.session);
    format!("{BALLOTS}{disk}/{session}/{}", ballot.attempt)
}

async fn ask(
    member: &str,
    tls: Option<&TlsConnector>,
    question: (&str, String),
) -> io::Result<Value> {
    let stream = TcpStream::connect(member).await?;
    stream.set_nodelay(true)?;
    match tls {
        Some(tls) => post(tls::greet(tls, member, stream).await?, member, question).await,
        None => post(stream, member, question).await,
    }
}

async fn post<S>(stream: S, member: &str, (path, body): (&str, String)) -> io::Result<Value>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = http.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let request = Request::post(path)
        .header("host", member)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(io::Error::other)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    connection.abort();
    let body = body.map_err(io::Error::other)?.to_bytes();
    if status != StatusCode::OK {
        let said = String::from_utf8_lossy(&body);
        let said: String = said.chars().take(200).collect();
        return Err(io::Error::other(format!("{status}: {}", said.trim())));
    }
    serde_json::from_slice(&body).map_err(|e| no_answer(&e.to_string()))
}

impl Arbiter for Etcd {
    fn id(&self) -> io::Result<Uuid> {
        let answer = self.call("/v3/kv/range", &json!({"key": text(ID)}))?;
        parse_id(pairs(&answer)?.pop().map(|(_, value)| value))
    }

    fn establish(&self, id: Uuid) -> io::Result<()> {
        let (done, answer) = self.put_once(ID, &id.to_string(), None)?;
        if done {
            return Ok(());
        }
        let there = parse_id(found(&answer, 0)?)?;
        // The answer to an earlier try of this call may have been lost.
        if there == id {
            return Ok(());
        }
        Err(already_there(there))
    }

    fn reach(&self, id: Uuid) -> io::Result<()> {
        let now = format!("{:?}", std::time::SystemTime::now());
        let named = text(&id.to_string());
        let answer = self.call(
            "/v3/kv/txn",
            &json!({
                "compare": [{"key": text(ID), "target": "VALUE", "result": "EQUAL", "value": named}],
                "success": [{"request_put": {"key": text(PROBE), "value": text(&now)}}],
                "failure": [{"request_range": {"key": text(ID)}}],
            }),
        )?;
        if answer.get("succeeded").and_then(Value::as_bool) == Some(true) {
            return Ok(());
        }
        is_the_one(id, parse_id(found(&answer, 0)?)?)?;
        Err(no_answer("neither yes nor no"))
    }

    fn decide(&self, id: Uuid, ballot: Ballot, side: Side) -> io::Result<Side> {
        let (done, answer) = self.put_once(&key_of(ballot), &side.to_string(), Some(id))?;
        if done {
            return Ok(side);
        }
        is_the_one(id, parse_id(found(&answer, 0)?)?)?;
        let there = found(&answer, 1)?.ok_or_else(|| no_answer("nothing"))?;
        parse_side(&there)
    }

    fn decided(&self) -> io::Result<Vec<(Ballot, Side)>> {
        self.id()?;
        // All keys that begin so: up to the first that would come after them.
        let end = text(&BALLOTS.replace("ballot/", "ballot0"));
        let answer = self.call(
            "/v3/kv/range",
            &json!({"key": text(BALLOTS), "range_end": end}),
        )?;
        let all = pairs(&answer)?.into_iter().map(|(key, value)| {
            let ballot = parse_ballot(&key).ok_or_else(|| no_answer(&key))?;
            Ok((ballot, parse_side(&value)?))
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_with_their_ports_and_nothing_else() {
        let two = Etcd::parse("http://a:2379,http://[::1]:2379/").unwrap();
        assert_eq!(two.members, ["a:2379", "[::1]:2379"]);
        for wrong in [
            "",
            "a:2379",
            "https://a:2379,http://b:2379",
            "http://a:2379,https://b:2379",
            "http://a",
            "http://:1",
            "http://a:2379/x:1",
            "http://a:1,",
        ] {
            assert!(Etcd::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_that_makes_no_sense_decides_nothing() {
        let source = text("source");
        let of = |ranges: Value| json!({"header": {}, "responses": ranges});
        let range =
            |value: &str| json!({"response_range": {"kvs": [{"key": text("k"), "value": value}]}});
        assert_eq!(
            found(&of(json!([range(&source)])), 0).unwrap().unwrap(),
            "source"
        );
        assert_eq!(
            found(&of(json!([{"response_range": {"count": "0"}}])), 0).unwrap(),
            None
        );
        for wrong in [
            json!({}),
            of(json!([])),
            of(json!([{"response_put": {}}])),
            of(json!([range("***")])),
            of(json!([{"response_range": {"kvs": {}}}])),
        ] {
            assert!(found(&wrong, 0).is_err(), "{wrong}");
        }
        assert!(parse_side("Source").is_err() && parse_id(Some("x".into())).is_err());
        assert_eq!(parse_id(None).unwrap_err().kind(), io::ErrorKind::NotFound);
        let ballot = Ballot {
            disk: Uuid::from_u128(1),
            session: Uuid::from_u128(2),
            attempt: 3,
        };
        assert_eq!(parse_ballot(&key_of(ballot)), Some(ballot));
        assert_eq!(parse_ballot(&format!("{}/4", key_of(ballot))), None);
    }
}
