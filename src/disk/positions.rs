//! Reads and writes at an offset, for which systems have names of their own.

#[cfg(unix)]
pub(super) use std::os::unix::fs::FileExt as Positions;

/// As `FileExt` of unix has them. The file's own position is moved, and nobody uses it.
#[cfg(windows)]
pub(super) trait Positions {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()>;
}

#[cfg(windows)]
impl Positions for std::fs::File {
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> std::io::Result<()> {
        use std::io::ErrorKind;
        use std::os::windows::fs::FileExt;

        while !buf.is_empty() {
            match self.seek_read(buf, offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = buf
                        .get_mut(read..)
                        .expect("no more is read than there is room");
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
        use std::io::ErrorKind;
        use std::os::windows::fs::FileExt;

        while !bytes.is_empty() {
            match self.seek_write(bytes, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes
                        .get(written..)
                        .expect("no more is written than there is");
                    offset += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
