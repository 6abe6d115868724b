//! R4, for stores that another system can write to.

use crate::ForeignStore;

crate::conformance_cases! { foreign => conformance_data [ForeignStore] }

mod rooms {
    use std::slice::from_ref;

    use naru_model::room::sorted_members;
    use naru_model::{MemberVersion, RoomId, RoomKind, Seq};

    use crate::fixtures::{filled, user};
    use crate::{ForeignStore, Of};
    use naru_engines::store::{Changed, Created, MemberChange, NewRoom};

    pub(super) async fn r4_a_room_of_another_system_reads_as_a_direct_room(subject: Of<'_, ForeignStore>) {
        let ForeignStore { store, write } = subject.open().await;
        let (ada, ben) = (user(), user());
        let members = sorted_members([ada.clone(), ben.clone()]);
        let id = RoomId::direct(&ada, &ben);
        // The other system need not sort the members.
        write(id.clone(), ben.clone(), ada.clone()).await;

        let room = store.rooms.current(from_ref(&id)).await.unwrap().remove(0).expect("it is there");
        assert_eq!((&room.id, room.kind, &room.member_ids), (&id, RoomKind::Direct, &members));
        assert_eq!(room.member_version, MemberVersion::FIRST);
        assert_eq!(store.rooms.members_at(&id, MemberVersion::FIRST).await.unwrap(), Some(members.clone()));
        assert_eq!(store.rooms.members_at(&id, MemberVersion(2)).await.unwrap(), None);

        let change = store.rooms.change(&id, MemberChange::Add(user()), 10).await.unwrap();
        assert_eq!(change, Changed::Direct);
        let new = NewRoom {
            id: id.clone(),
            kind: RoomKind::Direct,
            name: None,
            member_ids: members,
            maker_id: None,
        };
        assert_eq!(store.rooms.create(new).await.unwrap(), Created::Existing(room));

        // The room is like any other, whether or not it was listed.
        filled(&store, &id, &ada, 1..=2).await;
        assert_eq!(store.positions.unread(&[ada.clone(), ben.clone()]).await.unwrap(), [0, 2]);
        let summary = store.rooms.summary(&id, &ben).await.unwrap().expect("a member");
        assert_eq!((summary.last_seq, summary.unread_count), (Seq(2), 2));
        assert_eq!(store.rooms.of_user(&ben, None, 10).await.unwrap(), (vec![summary], None));
        assert_eq!(store.rooms.share_a_room(&ada, &[ben]).await.unwrap(), [true]);
    }
}
