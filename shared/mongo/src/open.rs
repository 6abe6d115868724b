//! Opening the database: only data that this version can read, only with its number of partitions, and never without its
//! indexes, on which the guarantees depend.

use std::time::Duration;

use bson::{Document, doc};
use futures_util::future::try_join_all;
use mongodb::error::{Error, ErrorKind};
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::options::{
    Acknowledgment, ClientOptions, DatabaseOptions, IndexOptions, ReadConcern, ReadPreference,
    SelectionCriteria, WriteConcern,
};
use mongodb::{Client, IndexModel};
use naru_engines::store::{Device, Devices, Platform};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::StoreEpoch;
use tokio::sync::mpsc::UnboundedSender;

use crate::Options;
use crate::database::{Database, Find, Update};
use crate::document::{DeviceDocument, MetaDocument};
use crate::error::{ENGINE, Request, contended};

/// The layout that this program writes and reads.
const SCHEMA_VERSION: u32 = 2;
/// How long a request searches for a primary, and how long connecting to a server may take, unless the URL sets it. The
/// driver's default of 30 s is longer than a client waits for its answer.
const SERVER_SELECTION_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The most connections to one server, unless the URL sets it: the driver specification's default. The driver's own
/// default of 10 is less than the reads of many clients at once.
const CONNECTIONS: u32 = 100;
/// How many of them are opened in advance and kept, unless the URL sets it, so that no batch waits for a handshake.
const KEPT_CONNECTIONS: u32 = 8;
/// U1 requires two days.
const PUSHES_ARE_KEPT: Duration = Duration::from_secs(3 * 24 * 60 * 60);

pub(crate) const INTAKE: &str = "intake";
pub(crate) const CHAT_MESSAGES: &str = "chat_messages";
pub(crate) const CHAT_ROOMS: &str = "chat_rooms";
pub(crate) const ROOM_VERSIONS: &str = "room_versions";
pub(crate) const MEMBERS: &str = "members";
pub(crate) const DEVICES: &str = "devices";
pub(crate) const USERS: &str = "users";
pub(crate) const ERASURES: &str = "erasures";
pub(crate) const PUSHES: &str = "pushes";
pub(crate) const PARKED: &str = "parked";
pub(crate) const META: &str = "meta";
/// The ids of `meta`'s documents.
pub(crate) const STORE: &str = "store";
pub(crate) const CONTENTS: &str = "contents";
/// Written to see whether writes are taken.
pub(crate) const WRITES: &str = "writes";

pub(crate) async fn open(url: &str, database: &str, options: &Options) -> EngineResult<Database> {
    let database = connect(url, database, options).await?;
    check_meta(&database, options.partitions).await?;
    try_join_all(indexes().into_iter().map(|(name, indexes)| {
        let collection = database.handle().collection::<Document>(name);
        // Without a time limit: a collection of another system may be large.
        async move {
            collection.create_indexes(indexes).await.map_err(|error| Request::Write.failed(name, &error))
        }
    }))
    .await?;
    respell_tokens(&database).await?;
    Ok(database)
}

async fn connect(url: &str, database: &str, options: &Options) -> EngineResult<Database> {
    let handle = client(url, options.commands.as_ref()).await?.database_with_options(database, promises());
    Ok(Database::new(handle, options.answer_within))
}

/// Opens the database of a store that is there: nothing is made.
pub(crate) async fn open_restored(url: &str, name: &str, partitions: u32) -> EngineResult<Database> {
    let database = connect(url, name, &Options::default()).await?;
    match database.find_one::<MetaDocument>(META, doc! { "_id": STORE }).await? {
        Some(meta) => {
            check_version(&database, meta.schema_version)?;
            check_partitions(meta.partitions, partitions)?;
            Ok(database)
        }
        None => Err(EngineError::permanent(ENGINE, format!("the database {name} holds no data of Naru"))),
    }
}

/// Gives APNs' tokens that an earlier state of this program stored their canonical spelling (D5): one query where there is
/// none. Of two spellings of a token, the one that was registered last stays.
///
/// What if the process dies in between, or several do this? Each step is conditional, and the next start finds what is left.
async fn respell_tokens(database: &Database) -> EngineResult<()> {
    let capitals = doc! { "platform": Platform::Apns.lane().as_str(), "token": { "$regex": "^[0-9a-fA-F]*[A-F][0-9a-fA-F]*$" } };
    let devices = Find::all(capitals).sorted(doc! { "registeredAt": 1 });
    for device in database.find::<DeviceDocument>(DEVICES, devices).await?.into_iter().map(Device::from) {
        let canonical = device.platform.canonical(&device.token);
        database.remove_token(device.platform, &canonical, device.registered_at).await?;
        let this = doc! {
            "userId": device.user.as_str(), "deviceId": device.id.as_str(), "token": &*device.token,
        };
        let respell = Update::one(this.clone(), doc! { "$set": { "token": &*canonical } });
        if !database.try_updates(DEVICES, &[respell]).await?.is_empty() {
            // The other spelling was registered later.
            database.remove(DEVICES, this).await?;
        }
    }
    Ok(())
}

/// A client for the URL. Options that neither it nor a constant above sets keep the driver's defaults.
async fn client(url: &str, commands: Option<&UnboundedSender<String>>) -> EngineResult<Client> {
    // The driver's error may repeat the URL, and with it a password.
    let unusable = |error: Error| match &*error.kind {
        ErrorKind::DnsResolve { .. } => Request::Read.failed("the URL's servers", &error),
        _ => {
            EngineError::permanent(ENGINE, "the URL is not one of MongoDB's (mongodb://… or mongodb+srv://…)")
        }
    };
    let mut options = ClientOptions::parse(url).await.map_err(unusable)?;
    options.app_name.get_or_insert_with(|| "naru".to_owned());
    options.server_selection_timeout.get_or_insert(SERVER_SELECTION_TIMEOUT);
    options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
    let max = *options.max_pool_size.get_or_insert(CONNECTIONS);
    options.min_pool_size.get_or_insert(KEPT_CONNECTIONS.min(max));
    options.command_event_handler = commands.cloned().map(|commands| {
        EventHandler::callback(move |event| {
            if let CommandEvent::Started(started) = event {
                // The test may have ended.
                let _ = commands.send(started.command_name);
            }
        })
    });
    Client::with_options(options).map_err(|error| Request::Read.failed("the URL's options", &error))
}

/// The guarantees of every write and every read, whatever the URL says.
fn promises() -> DatabaseOptions {
    let write = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
    DatabaseOptions::builder()
        .write_concern(write)
        .read_concern(ReadConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .build()
}

/// The first process stores the number of partitions.
async fn check_meta(database: &Database, partitions: u32) -> EngineResult<()> {
    let made_with = MetaDocument {
        id: STORE.to_owned(),
        schema_version: SCHEMA_VERSION,
        partitions,
        epoch: StoreEpoch::FIRST,
    };
    let _is_new = database.insert_one(META, made_with).await?;
    let Some(meta) = database.find_one::<MetaDocument>(META, doc! { "_id": STORE }).await? else {
        // Another process's document, not yet on the majority.
        return Err(contended(META, Applied::Unknown));
    };
    check_version(database, meta.schema_version)?;
    check_partitions(meta.partitions, partitions)
}

fn check_partitions(stored: u32, configured: u32) -> EngineResult<()> {
    if stored == configured {
        return Ok(());
    }
    refuse(format!(
        "this deployment has {stored} partitions, {configured} are configured (the key `partitions`; \
         docs/decisions/0012-one-partition-unless-asked.md says how to change it)"
    ))
}

fn refuse(why: String) -> EngineResult<()> {
    Err(EngineError::permanent(ENGINE, why))
}

fn check_version(database: &Database, found: u32) -> EngineResult<()> {
    if found > SCHEMA_VERSION {
        let why = format!(
            "the data is of schema version {found}, this program knows versions up to {SCHEMA_VERSION}"
        );
        return refuse(why);
    }
    if found < SCHEMA_VERSION {
        let name = database.handle().name();
        return refuse(format!(
            "the database {name} is of an older layout (schema {found}, this is {SCHEMA_VERSION}). No release was made \
             yet: use another database name (mongodb_database) or drop it"
        ));
    }
    Ok(())
}

/// Every index, by collection. The crate's documentation has them in a table; a test compares that with a server's list.
fn indexes() -> [(&'static str, Vec<IndexModel>); 9] {
    let open = || IndexOptions::builder().partial_filter_expression(doc! { "open": true }).build();
    [
        (
            INTAKE,
            vec![
                unique(doc! { "chatRoomId": 1, "senderId": 1, "clientMessageId": 1 }),
                index(doc! { "appended": 1, "timestamp": 1, "place": 1 }, open()),
            ],
        ),
        (
            CHAT_MESSAGES,
            vec![
                unique(doc! { "chatRoomId": 1, "seq": 1 }),
                plain(doc! { "chatRoomId": 1, "senderId": 1, "seq": 1 }),
            ],
        ),
        (
            CHAT_ROOMS,
            vec![
                plain(doc! { "memberIds": 1, "activity": -1, "_id": -1 }),
                plain(doc! { "user1Id": 1, "memberVersion": 1 }),
                plain(doc! { "user2Id": 1, "memberVersion": 1 }),
            ],
        ),
        (ROOM_VERSIONS, vec![unique(doc! { "chatRoomId": 1, "version": 1 }), plain(doc! { "leftAt": 1 })]),
        (MEMBERS, vec![unique(doc! { "userId": 1, "chatRoomId": 1 })]),
        (
            DEVICES,
            vec![
                unique(doc! { "userId": 1, "deviceId": 1 }),
                unique(doc! { "platform": 1, "token": 1 }),
                plain(doc! { "registeredAt": 1 }),
            ],
        ),
        (ERASURES, vec![index(doc! { "open": 1 }, open())]),
        (
            PUSHES,
            vec![index(
                doc! { "recordedAt": 1 },
                IndexOptions::builder().expire_after(PUSHES_ARE_KEPT).build(),
            )],
        ),
        (
            PARKED,
            vec![
                plain(doc! { "parkedAt": 1, "_id": 1 }),
                plain(doc! { "reason": 1, "parkedAt": 1, "_id": 1 }),
            ],
        ),
    ]
}

fn index(keys: Document, options: IndexOptions) -> IndexModel {
    IndexModel::builder().keys(keys).options(options).build()
}

fn plain(keys: Document) -> IndexModel {
    index(keys, IndexOptions::default())
}

fn unique(keys: Document) -> IndexModel {
    index(keys, IndexOptions::builder().unique(true).build())
}
