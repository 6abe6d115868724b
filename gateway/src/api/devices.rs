//! The devices that get the caller's pushes.

use std::sync::Arc;

use http::StatusCode;
use naru_engines::store::{Device, Platform};
use naru_model::hops::PushEnvironment;
use naru_model::{DeviceId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, json, no_content};
use crate::refusal::Refusal;

/// The longest token a provider gives: FCM's are under 4 KiB, APNs' 200 hexadecimal digits at most.
const LONGEST_TOKEN: usize = 4096;
/// The longest language tag (BCP 47 recommends to allow for 35).
const LONGEST_LOCALE: usize = 35;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceBody<'a> {
    device_id: &'a DeviceId,
    platform: Platform,
    environment: PushEnvironment,
    locale: Option<&'a str>,
    hide_content: bool,
}

impl<'a> From<&'a Device> for DeviceBody<'a> {
    fn from(device: &'a Device) -> Self {
        Self {
            device_id: &device.id,
            platform: device.platform,
            environment: device.environment,
            locale: device.locale.as_deref(),
            hide_content: device.hides_content,
        }
    }
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    #[derive(Serialize)]
    struct Body<'a> {
        devices: Vec<DeviceBody<'a>>,
    }
    let users = std::slice::from_ref(&call.caller.user);
    let devices = call.gateway.engines.store.devices.of_users(users).await?;
    Ok(json(StatusCode::OK, &Body { devices: devices.iter().map(DeviceBody::from).collect() }))
}

pub(super) async fn register(call: &Call<'_>, id: DeviceId) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        platform: Platform,
        token: Arc<str>,
        environment: Option<PushEnvironment>,
        locale: Option<Arc<str>>,
        hide_content: Option<bool>,
    }
    let Body { platform, token, environment, locale, hide_content } = call.json()?;
    if token.is_empty() || token.len() > LONGEST_TOKEN {
        return Err(Refusal::Invalid(format!("token must be 1 to {LONGEST_TOKEN} bytes")));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::Invalid("token must be printable ASCII characters without spaces".to_owned()));
    }
    if locale.as_ref().is_some_and(|locale| locale.is_empty() || locale.len() > LONGEST_LOCALE) {
        return Err(Refusal::Invalid(format!("locale must be 1 to {LONGEST_LOCALE} bytes")));
    }
    let users = std::slice::from_ref(&call.caller.user);
    let registered = call.gateway.engines.store.devices.of_users(users).await?;
    let max = call.gateway.config.max_devices_per_user;
    if registered.len() >= max && registered.iter().all(|device| device.id != id) {
        return Err(Refusal::TooMany { what: "devices", max });
    }
    let device = Device {
        user: call.caller.user.clone(),
        id,
        platform,
        token,
        environment: environment.unwrap_or_default(),
        locale,
        hides_content: hide_content.unwrap_or_default(),
        registered_at: Timestamp::now(),
    };
    let body = json(StatusCode::OK, &DeviceBody::from(&device));
    call.gateway.engines.store.devices.claim(device).await?;
    Ok(body)
}

pub(super) async fn remove(call: &Call<'_>, id: &DeviceId) -> Answer {
    call.gateway.engines.store.devices.remove(&call.caller.user, id).await?;
    Ok(no_content())
}
