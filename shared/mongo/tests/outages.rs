//! Servers that die, hang and come back, and clients that were there all the time.

use std::slice::from_ref;
use std::time::Duration;

use bson::doc;
use naru_engines::store::{Appended, RunResult, Window};
use naru_engines::{Applied, EngineError};
use naru_model::hops::Accepted;
use naru_model::{ClientMessageId, MessageId, Seq, Timestamp, Trace};
use naru_mongo::{Mongo, Options};
use naru_services::{Kind, Service, Stopwatch};

use crate::fixtures::{group, room, said, user};

async fn open(service: &Service) -> Mongo {
    let options = Options { answer_within: Duration::from_secs(5), ..Options::default() };
    Mongo::open(&service.url(), "naru", options).await.unwrap()
}

fn accepted() -> Accepted {
    let id = MessageId::generate();
    Accepted {
        id,
        chat_room_id: room("here"),
        sender_id: user("ada"),
        sender_name: "Ada".into(),
        content: "hello".into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        after: None,
        origin: None,
        trace: Trace::start(),
    }
}

fn applied(error: &EngineError) -> Applied {
    match error {
        EngineError::Unavailable { applied, .. } => *applied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_the_middle_of_runs_leaves_a_prefix_and_loses_nothing_it_confirmed() {
    const RUN: u64 = 64;
    let mut service = Service::start(Kind::Mongodb);
    let mongo = open(&service).await;
    let store = mongo.store();
    store.rooms.create(group("here", &["ada", "ben"])).await.unwrap();

    let (confirm, mut confirmed) = tokio::sync::watch::channel(0_u64);
    let persister = tokio::spawn({
        let store = store.clone();
        async move {
            let mut head = 0;
            loop {
                let run: Vec<_> =
                    (1..=RUN).map(|step| said(&room("here"), &user("ada"), head + step)).collect();
                match store.messages.append_run(&run).await {
                    Ok(RunResult { stored, stopped_by: None }) => head += stored as u64,
                    Ok(stopped) => panic!("{stopped:?}"),
                    Err(error) => return (head, run, error),
                }
                confirm.send_replace(head);
            }
        }
    });
    confirmed.wait_for(|head| *head >= 5 * RUN).await.unwrap();
    service.kill();
    let (head, run, error) = persister.await.unwrap();
    assert!(error.is_transient(), "{error:?}");

    service.start_again();
    let (stored, _) = store.messages.range(&room("here"), Window::After(Seq::ZERO), 1_000_000).await.unwrap();
    let places: Vec<_> = stored.iter().map(|message| message.seq.0).collect();
    assert_eq!(places, (1..=stored.len() as u64).collect::<Vec<_>>(), "dense");
    assert!(stored.len() as u64 >= head, "{} stored, {head} confirmed", stored.len());
    assert_eq!(
        stored[usize::try_from(head).unwrap()..],
        run[..stored.len() - usize::try_from(head).unwrap()]
    );

    // The same run comes again, and what had not been counted is.
    let again = store.messages.append_run(&run).await.unwrap();
    let left = &run[again.stored..];
    assert_eq!(again.stopped_by.is_some(), stored.len() as u64 > head, "{again:?}");
    if again.stopped_by.is_some() {
        let found =
            store.messages.find(&left.iter().map(|message| message.id).collect::<Vec<_>>()).await.unwrap();
        let missing: Vec<_> = left
            .iter()
            .zip(found)
            .filter(|(_, found)| found.is_none())
            .map(|(message, _)| message.clone())
            .collect();
        assert_eq!(store.messages.append_run(&missing).await.unwrap().stored, missing.len());
    }
    let summary = store.rooms.summary(&room("here"), &user("ada")).await.unwrap().unwrap();
    assert_eq!((summary.last_seq, summary.unread_count), (Seq(head + RUN), 0));
    drop(mongo);
}

#[tokio::test]
async fn a_dead_server_is_unavailable_within_seconds_and_comes_back_to_the_same_client() {
    let mut service = Service::start(Kind::Mongodb);
    let mongo = open(&service).await;
    let store = mongo.store();
    let entry = accepted();
    assert_eq!(store.intake.append(from_ref(&entry)).await.unwrap(), [Appended::New]);
    service.stop();

    let began = Stopwatch::start();
    let (new, here) = ([accepted()], [room("here")]);
    let (append, current, ping) =
        tokio::join!(store.intake.append(&new), store.rooms.current(&here), mongo.ping());
    assert!(began.elapsed() < Duration::from_secs(8), "3 s, not the driver's 30: {:?}", began.elapsed());
    assert!(append.unwrap_err().is_transient());
    assert_eq!(applied(&current.unwrap_err()), Applied::No, "a read has no effect");
    assert!(ping.unwrap_err().is_transient());

    service.start_again();
    mongo.ping().await.unwrap();
    let Appended::Resend(first) = store.intake.append(from_ref(&entry)).await.unwrap().remove(0) else {
        panic!("it was there");
    };
    assert_eq!(first.accepted, entry);
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable_within_the_limit() {
    let service = Service::start(Kind::Mongodb);
    // Long enough for a busy machine to open the database.
    let options = Options { answer_within: Duration::from_secs(2), ..Options::default() };
    let mongo = Mongo::open(&service.url(), "naru", options).await.unwrap();
    let store = mongo.store();
    mongo.ping().await.unwrap();
    service.freeze();
    let entry = accepted();
    let error = store.intake.append(from_ref(&entry)).await.unwrap_err();
    assert_eq!(applied(&error), Applied::Unknown, "it may have it: {error:?}");
    let error = store.intake.get(&[entry.id]).await.unwrap_err();
    assert_eq!(applied(&error), Applied::No, "a read has no effect: {error:?}");
    service.thaw();
    // Repeated with the same id, with more time, it is in once, whatever became of the first try.
    let store = open(&service).await.store();
    let answer = store.intake.append(from_ref(&entry)).await.unwrap().remove(0);
    assert!(matches!(answer, Appended::New | Appended::Resend(_)), "{answer:?}");
    let open = store.intake.open(None, None, 10).await.unwrap().entries;
    assert!(open.iter().map(|open| &open.accepted).eq([&entry]), "{open:?}");
}

#[tokio::test]
async fn a_server_that_takes_no_writes_says_so() {
    let service = Service::start(Kind::Mongodb);
    let mongo = open(&service).await;
    mongo.check_writes().await.unwrap();
    let admin = mongodb::Client::with_uri_str(service.url()).await.unwrap().database("admin");
    let disk_is_full = async |mode: &str| {
        let fault = doc! { "failCommands": ["update", "insert"], "errorCode": 14031 };
        let command = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": fault };
        admin.run_command(command).await.unwrap();
    };
    disk_is_full("alwaysOn").await;
    mongo.ping().await.unwrap();
    assert!(mongo.check_writes().await.unwrap_err().is_transient());
    assert!(mongo.store().intake.append(&[accepted()]).await.unwrap_err().is_transient());
    disk_is_full("off").await;
    mongo.check_writes().await.unwrap();
}
