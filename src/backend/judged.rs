//! Calls that hold only for a session as it was judged.

use crate::backend::calls::Made;
use crate::codec::{SessionState, Version};
use crate::model::{Result, Seq};
use crate::turn::TurnReader;

/// The state of a session that a call was decided on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    version: Version,
    /// `None` if more events change nothing.
    tail: Option<Seq>,
}

impl Judged {
    pub(crate) fn whole(state: &SessionState) -> Self {
        Self {
            version: state.version(),
            tail: Some(state.tail()),
        }
    }

    pub(crate) fn but_for_new_events(state: &SessionState) -> Self {
        Self {
            version: state.version(),
            tail: None,
        }
    }
}

/// Returns what makes the same batch, which is outdated if its session is not as it was judged.
pub(crate) fn only_if(
    judged: Judged,
    mut inner: impl FnMut(&TurnReader) -> Result<Made> + Send,
) -> impl FnMut(&TurnReader) -> Result<Made> + Send {
    move |turns| {
        let mut made = inner(turns)?;
        made.batch.based_on = Some(judged.version);
        made.batch.based_on_tail = judged.tail;
        Ok(made)
    }
}
