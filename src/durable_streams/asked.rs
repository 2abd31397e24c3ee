//! What a creation asks for, and whether a stream is that.

use percent_encoding::percent_decode_str;

use crate::durable_streams::headers::{ForkOf, Lifetime};
use crate::durable_streams::offset::Offset;
use crate::durable_streams::settings::ContentType;
use crate::durable_streams::stream::{Stream, session_at};
use crate::http::{Access, ApiError};
use crate::model::SessionId;

/// A stream as it is asked for.
pub(super) struct Asked {
    pub content_type: Option<ContentType>,
    pub lifetime: Lifetime,
    pub closed: bool,
    pub fork: Option<AskedFork>,
}

impl Asked {
    /// Whether a stream is what is asked for.
    pub(super) fn is(&self, stream: &Stream) -> bool {
        let settings = &stream.settings;
        let has = Lifetime {
            ttl: settings.ttl,
            expires_at: settings.expires_at,
        };
        let is_left_out = self.fork.is_some() && self.lifetime == Lifetime::default();
        let content_type = match (&self.content_type, &self.fork) {
            (Some(asked), _) => asked.is_like(&settings.content_type),
            (None, Some(_inherits)) => true,
            (None, None) => ContentType::bytes().is_like(&settings.content_type),
        };
        let is_of_source = match &self.fork {
            Some(fork) => fork.is_of(stream),
            None => settings.source.is_none(),
        };
        content_type
            && (is_left_out || self.lifetime == has)
            && self.closed == stream.info.closed
            && is_of_source
    }
}

/// A fork as it is asked for.
pub(super) struct AskedFork {
    pub source: SessionId,
    pub offset: Option<Offset>,
    pub sub_offset: u64,
}

impl AskedFork {
    /// Reads what was sent. The source is a path of this server: below `mount`, or in the router.
    pub(super) fn of(sent: &ForkOf<'_>, mount: &str, access: &Access) -> Result<Self, ApiError> {
        let below = sent.from.strip_prefix(mount);
        let path = below
            .filter(|path| path.starts_with('/'))
            .unwrap_or(sent.from)
            .strip_prefix('/')
            .ok_or_else(|| ApiError::invalid("the source of the fork is no path of this server"))?;
        let path = percent_decode_str(path).decode_utf8().map_err(|error| {
            ApiError::invalid(format!("the source of the fork is no path: {error}"))
        })?;
        Ok(Self {
            source: session_at(&path, access)?,
            offset: sent.offset.map(Offset::parse).transpose()?,
            sub_offset: sent.sub_offset,
        })
    }

    /// Whether a stream is this fork. An offset that is left out is any.
    pub(super) fn is_of(&self, stream: &Stream) -> bool {
        let settings = &stream.settings;
        let fork = settings.fork.unwrap_or_default();
        let is_at = self.offset.is_none_or(|offset| {
            Some(offset.life) == stream.source_life() && offset.seq == fork.seq
        });
        settings.source.as_ref() == Some(&self.source)
            && is_at
            && self.sub_offset == fork.sub_offset
    }
}
