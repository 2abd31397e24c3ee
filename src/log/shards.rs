//! The shards of a log on PostgreSQL.

use crate::log::SessionLog;
use crate::model::{Moved, Result, SessionId, Shard};

impl SessionLog {
    /// Returns the shards of a log on PostgreSQL in the order of their numbers, with the database
    /// that each is in. It blocks while the databases are asked.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for a log in a folder.
    /// [`Error::Io`](crate::Error::Io) if a database does not answer, or if a shard is in none of
    /// them.
    pub fn shards(&self) -> Result<Vec<Shard>> {
        self.engine.shards()
    }

    /// Returns the number of the shard that a session is in, or would be in if it began. It stays
    /// the same for the life of the log, and no database is asked for it.
    ///
    /// A shard takes the most appends if they all come through one server, which then makes larger
    /// groups.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for a log in a folder.
    pub fn shard_of(&self, session: &SessionId) -> Result<u32> {
        self.engine.shard_of(session)
    }

    /// Moves a shard to another database, of those that the log was opened with: 0 for that of
    /// [`connect`](crate::Options::connect), and from 1 on those of
    /// [`and_database`](crate::Options::and_database).
    ///
    /// Servers go on meanwhile. Appends to the shard wait for the short last part, whose time the
    /// answer has. Readers and streams go on. What was removed is not erased before the move is
    /// over. It blocks until the shard is in its new place and what it left behind is deleted,
    /// which takes as long as copying it.
    ///
    /// It may be done again at any time: of a shard that is there already it deletes what is left
    /// in the other databases. One shard is moved by one call at a time, and several at once.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for a shard or a database that is not there, and
    /// for a shard that is being moved. [`Error::Io`](crate::Error::Io) if a database does not
    /// answer: the shard is then in one of the two, whole, and every server finds it. The same
    /// call goes on from there.
    pub fn move_shard(&self, shard: u32, database: usize) -> Result<Moved> {
        self.engine.move_shard(shard, database)
    }
}
