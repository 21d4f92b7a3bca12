//! Archives made by hand, for tests: also such as no program would write.

use std::io::Cursor;

use tar::{EntryType, Header};

use crate::layer::entries::{self, Allowance, ArchiveError, Entry};

/// An archive that grows.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    /// One entry with the usual metadata.
    pub(crate) fn with(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        self.changed(kind, name, link, data, |_| ())
    }

    /// One entry whose header `change` may spoil.
    pub(crate) fn changed(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.padded(data)
    }

    /// PAX records about the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let digits = (1..).find(|digits| (body + digits).to_string().len() == *digits).unwrap();
            data.extend_from_slice(format!("{} {key}=", body + digits).as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.with(b'x', "pax", "", &data)
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.with(b'5', name, "", b"")
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.with(b'0', name, "", data)
    }

    pub(crate) fn padded(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// What was written so far, without an end mark.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    read_within(bytes, &crate::Limits::default())
}

pub(crate) fn read_within(bytes: &[u8], limits: &crate::Limits) -> Result<Vec<Entry>, ArchiveError> {
    entries::read(Cursor::new(bytes), bytes.len() as u64, 0, &mut Allowance::new(limits))
}
