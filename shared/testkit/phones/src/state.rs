//! The state that the connections of both providers share.

use crate::oauth::Authority;
use crate::provider_token::ProviderTokens;
use crate::record::Record;
use crate::script::Script;

pub(crate) struct State {
    pub(crate) record: Record,
    pub(crate) script: Script,
    pub(crate) authority: Authority,
    pub(crate) provider_tokens: ProviderTokens,
}
