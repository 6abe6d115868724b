//! "Unknown is not offline", for engines that can be cut off.

use crate::SeverableLayer;

crate::conformance_cases! { outage => conformance_data [SeverableLayer] }

mod presence {
    use std::slice::from_ref;
    use std::time::Duration;

    use naru_model::{GatewayId, SessionId};

    use crate::fixtures::user;
    use crate::{Of, SeverableLayer};
    use naru_engines::live::PresenceEntry;

    pub(super) async fn e0_unknown_is_not_offline(subject: Of<'_, SeverableLayer>) {
        let SeverableLayer { layer, sever } = subject.open().await;
        let presence = layer.presence;
        let (ada, gateway) = (user(), GatewayId::generate());
        let session = PresenceEntry {
            user: ada.clone(),
            device: None,
            session: SessionId::generate(),
            gateway: gateway.clone(),
        };
        presence.renew(&gateway, Duration::from_secs(600)).await.unwrap();
        presence.attach(&session).await.unwrap();
        assert!(presence.online(from_ref(&ada)).await.unwrap()[0]);
        sever().await;
        let online = presence.online(from_ref(&ada)).await;
        assert!(online.is_err(), "{online:?} can't be known");
        let seen = presence.seen(from_ref(&ada)).await;
        assert!(seen.is_err(), "{seen:?} can't be known");
    }
}
