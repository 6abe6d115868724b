//! How many commands a call sends, however much it is asked: what a message costs is decided here.

use naru_engines::store::{Closing, Store};
use naru_model::hops::Accepted;
use naru_model::message::Outcome;
use naru_model::{ClientMessageId, Message, MessageId, RoomId, Seq, Timestamp, Trace, UserId};
use naru_mongo::{Mongo, Options};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::fixtures::{Fresh, group, url, user};

/// A store, and the names of the commands that it sends.
async fn watched(fresh: &Fresh) -> (Store, UnboundedReceiver<String>) {
    let (commands, sent) = unbounded_channel();
    let options = Options { commands: Some(commands), ..Options::default() };
    (Mongo::open(url(), &fresh.name, options).await.unwrap().store(), sent)
}

fn accepted(room: &RoomId, sender: &UserId) -> Accepted {
    let id = MessageId::generate();
    Accepted {
        id,
        chat_room_id: room.clone(),
        sender_id: sender.clone(),
        sender_name: "Ada".into(),
        content: "hello".into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        after: None,
        origin: None,
        trace: Trace::start(),
    }
}

#[tokio::test]
async fn a_batch_costs_one_command_for_each_of_its_steps() {
    let fresh = Fresh::new();
    let (store, mut commands) = watched(&fresh).await;
    let rooms: Vec<RoomId> = (0..50).map(|number| crate::fixtures::room(&format!("room {number}"))).collect();
    let ada = user("ada");
    for room in &rooms {
        store.rooms.create(group(room.as_str(), &["ada", "ben"])).await.unwrap();
    }
    let mut sent = || {
        let mut names = Vec::new();
        while let Ok(name) = commands.try_recv() {
            names.push(name);
        }
        names
    };
    sent();

    let entries: Vec<Accepted> = rooms.iter().chain(&rooms).map(|room| accepted(room, &ada)).collect();
    store.intake.append(&entries).await.unwrap();
    assert_eq!(sent(), ["insert"], "append of 100");

    let current = store.rooms.current(&rooms).await.unwrap();
    assert!(current.iter().all(Option::is_some));
    assert_eq!(sent(), ["find"], "current of 50");

    let run: Vec<Message> = entries
        .into_iter()
        .zip((1..=2).flat_map(|seq| vec![Seq(seq); 50]))
        .map(|(entry, seq)| entry.at(seq))
        .collect();
    assert_eq!(store.messages.append_run(&run).await.unwrap().stored, 100);
    assert_eq!(sent(), ["insert"], "append_run of 100 in 50 rooms");

    store.messages.bump(&run[50..]).await.unwrap();
    assert_eq!(sent(), ["update"], "bump of 50");

    let closings =
        run.iter().map(|message| Closing { id: message.id, outcome: Outcome::Saved { seq: message.seq } });
    store.intake.close(&closings.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(sent(), ["update"], "close of 100");

    assert_eq!(store.messages.heads(&rooms).await.unwrap(), [Seq(2); 50]);
    assert_eq!(sent(), ["find", "find"], "heads of 50: where they were last, and what came after that");

    let members: Vec<_> = rooms.iter().map(|room| (room.clone(), ada.clone(), Seq(1))).collect();
    assert!(store.positions.get(&members).await.unwrap().iter().all(|position| position.read == Seq(2)));
    assert_eq!(sent(), ["find", "find"], "positions of 50: what they said, and what they sent after that");

    store.rooms.of_user(&ada, None, 50).await.unwrap();
    assert_eq!(sent(), ["find"; 5], "a list of 50");

    let others: Vec<UserId> = (0..100).map(|number| user(&format!("other-{number}"))).collect();
    assert_eq!(store.rooms.share_a_room(&ada, &others).await.unwrap(), [false; 100]);
    let mut search = sent();
    search.sort_unstable();
    assert_eq!(search, ["aggregate", "find"], "whether 100 users share a room with one");
}
