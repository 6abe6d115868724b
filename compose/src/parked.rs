//! `naru parked`: lets an operator list, show, replay and drop pushes that could not be sent.
//!
//! It calls the HTTP API of a running Naru. So it is one command for both engines: the data of an embedded engine belongs to
//! the running process, and the command need not know the addresses of services.

mod remote;
mod table;

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use naru_model::hops::Lane;
use naru_model::{DeviceId, EventId, MessageId, RoomId, Seq, Timestamp, UserId};
use naru_runtime::{Settings, output};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::address::from_here;
use crate::parked::remote::{Refused, Remote};
use crate::secret;
use crate::token::{self, Claims, Signer};

/// The lifetime of the token that it signs for itself: longer than a long list takes.
const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// A parked push, as the HTTP API shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Parked {
    event_id: EventId,
    lane: Lane,
    user_id: UserId,
    device_id: Option<DeviceId>,
    chat_room_id: RoomId,
    message_id: MessageId,
    seq: Seq,
    reason: String,
    attempts: u32,
    parked_at: Timestamp,
    expires_at: Timestamp,
    #[serde(default)]
    title: String,
    #[serde(default)]
    body: String,
}

/// The action on the selected pushes.
#[derive(Clone, Copy)]
enum Deed {
    Replay,
    Drop,
}

impl Deed {
    const fn done(self) -> &'static str {
        match self {
            Self::Replay => "sent again",
            Self::Drop => "dropped",
        }
    }
}

/// The subcommand.
pub fn command() -> Command {
    let own = |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help).global(true);
    let id = || Arg::new("id").value_name("ID").value_parser(value_parser!(EventId));
    let picked = |name: &'static str, about: &'static str, all: &'static str| {
        let all = Arg::new("all").long("all").help(all).action(ArgAction::SetTrue);
        let ids = id().num_args(1..).help("Which: the event ids that `list` shows");
        Command::new(name)
            .about(about)
            .arg(ids)
            .arg(all)
            .group(ArgGroup::new("which").args(["id", "all"]).required(true))
    };
    Command::new("parked")
        .about("Lists, shows, sends again or drops pushes that could not be sent, in a Naru that runs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(own("url", "Where Naru is [default: `listen` of the configuration in force]").value_name("URL"))
        .arg(
            own("token", "A token with scope service [default: one signed with the secret in force]")
                .value_name("TOKEN"),
        )
        .arg(own("json", "Answers in JSON").action(ArgAction::SetTrue))
        .subcommand(Command::new("list").about("Lists them, the one that was parked first at the top"))
        .subcommand(Command::new("show").about("Shows one, with what it says").arg(id().required(true)))
        .subcommand(picked(
            "replay",
            "Sends them again, with a new time to live",
            "All that are parked when it begins",
        ))
        .subcommand(picked("drop", "Takes them off the list for good", "All that are parked when it begins"))
}

/// Does what the arguments ask for, and prints the result on stdout.
///
/// # Errors
/// When Naru can't be reached, or refuses.
pub async fn run(wanted: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let Some((name, wanted)) = wanted.subcommand() else { bail!("say what to do with what is parked") };
    let remote = remote(wanted, settings)?;
    let (mut out, is_json) = (io::stdout().lock(), wanted.get_flag("json"));
    let done = match name {
        "list" => list(&remote, is_json, &mut out).await,
        "show" => show(&remote, wanted, is_json, &mut out).await,
        "replay" => all(&remote, Deed::Replay, wanted, is_json, &mut out).await,
        _ => all(&remote, Deed::Drop, wanted, is_json, &mut out).await,
    };
    match done {
        // `| head` has closed the pipe.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn remote(wanted: &ArgMatches, settings: &Settings) -> anyhow::Result<Remote> {
    #[derive(Deserialize)]
    struct Config {
        listen: SocketAddr,
        tls_certificate: String,
    }
    let given = |name: &str| wanted.get_one::<String>(name).cloned();
    let url = match given("url") {
        Some(url) => url,
        None => {
            let Config { listen, tls_certificate } = settings.pick()?;
            if listen.port() == 0 {
                bail!("`listen` is any port, so it does not say where Naru is: say it with --url");
            }
            let scheme = if tls_certificate.is_empty() { "http" } else { "https" };
            format!("{scheme}://{}", from_here(listen))
        }
    };
    let token = match given("token") {
        Some(token) => token,
        None => {
            let secret = secret::in_force(settings).context(
                "is it the --data-dir of the Naru that runs? Else give a --token with scope service",
            )?;
            let user: UserId = "naru".parse().context("a user id")?;
            let claims = Claims {
                sub: &user,
                name: None,
                device: None,
                scope: Some("service"),
                exp: token::expiry(TOKEN_TTL).as_millis() / 1000,
            };
            Signer::new(settings, secret)?.sign(&claims)?
        }
    };
    Remote::new(&url, token)
}

async fn list(remote: &Remote, is_json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut count, mut cursor, now) = (0, None, Timestamp::now());
    loop {
        let page = remote.page(cursor.as_deref()).await?;
        for push in page.parked {
            match (is_json, count) {
                (true, 0) => write!(out, "[{push}")?,
                (true, _) => write!(out, ",\n{push}")?,
                (false, first) => {
                    if first == 0 {
                        writeln!(out, "{}", table::HEAD)?;
                    }
                    writeln!(out, "{}", table::line(&read(push)?, now))?;
                }
            }
            count += 1;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    match (is_json, count) {
        (true, 0) => writeln!(out, "[]")?,
        (true, _) => writeln!(out, "]")?,
        (false, 0) => writeln!(out, "nothing is parked")?,
        (false, _) => {}
    }
    Ok(())
}

async fn show(
    remote: &Remote,
    wanted: &ArgMatches,
    is_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let id = *wanted.get_one::<EventId>("id").context("which?")?;
    let push: Value = remote.show(id).await?.map_err(|refused| refused.about(id))?;
    if is_json {
        writeln!(out, "{push:#}")?;
    } else {
        write!(out, "{}", table::whole(&read(push)?, Timestamp::now()))?;
    }
    Ok(())
}

/// Applies the action to each selected push, and continues when one is refused.
async fn all(
    remote: &Remote,
    deed: Deed,
    wanted: &ArgMatches,
    is_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Line<'a> {
        event_id: EventId,
        done: bool,
        #[serde(flatten)]
        refused: Option<&'a Refused>,
    }
    let ids = match wanted.get_many::<EventId>("id") {
        Some(ids) => ids.copied().collect(),
        // Listed before the first action: a push that is parked again meanwhile is not handled twice.
        None => every_id(remote).await?,
    };
    let mut refused = 0_usize;
    for (nth, id) in ids.iter().enumerate() {
        let answer = match deed {
            Deed::Replay => remote.replay(*id).await?,
            Deed::Drop => remote.drop(*id).await?,
        };
        let why = answer.err();
        refused += usize::from(why.is_some());
        if is_json {
            let line = Line { event_id: *id, done: why.is_none(), refused: why.as_ref() };
            let before = if nth == 0 { "[" } else { ",\n" };
            write!(out, "{before}{}", serde_json::to_string(&line)?)?;
            continue;
        }
        match why {
            None => writeln!(out, "{id} {}", deed.done())?,
            Some(why) => output::error_line(format_args!("{:#}", why.about(*id))),
        }
    }
    match (is_json, ids.len()) {
        (true, 0) => writeln!(out, "[]")?,
        (true, _) => writeln!(out, "]")?,
        (false, 0) => writeln!(out, "nothing is parked")?,
        (false, _) => {}
    }
    if refused > 0 {
        bail!("{refused} of {} could not be {}", ids.len(), deed.done());
    }
    Ok(())
}

async fn every_id(remote: &Remote) -> anyhow::Result<Vec<EventId>> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let page = remote.page(cursor.as_deref()).await?;
        for push in page.parked {
            ids.push(read(push)?.event_id);
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(ids);
        }
    }
}

fn read(push: Value) -> anyhow::Result<Parked> {
    serde_json::from_value(push).context("the answer can't be read: is it a Naru of another version?")
}
