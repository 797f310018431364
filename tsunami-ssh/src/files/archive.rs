//! Reads a tar stream from a machine, and holds nothing of it that has no bound.
//!
//! The `tar` crate reads long names, attributes and maps of holes into memory whatever their size, so only its
//! headers are used here.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::limits::{
    ARCHIVE_ENTRIES_LIMIT, ARCHIVE_EXTENSION_LIMIT, ARCHIVE_TAIL_LIMIT, SPARSE_PIECES_LIMIT,
};

const BLOCK: u64 = 512;

/// A tar stream, entry by entry.
#[derive(Debug)]
pub(super) struct Archive<R> {
    from: R,
    /// How much of the present entry's content has not been read.
    content: u64,
    /// What fills the last block of the content.
    padding: u64,
    entries: usize,
}

/// One entry, as the machine describes it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) mode: u32,
    /// In seconds since 1970.
    pub(super) modified: u64,
    pub(super) kind: EntryKind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// Its content follows, and is to be read with [`Archive::copy`], piece by piece.
    File {
        size: u64,
        pieces: Vec<Piece>,
    },
    Directory,
    /// Another name for this earlier entry.
    HardLink(Vec<u8>),
    /// A link to this path.
    Symlink(Vec<u8>),
    /// A socket, pipe or device: nothing that could be brought home.
    Other,
    /// A file that can't be read, and why.
    Unreadable(&'static str),
}

/// A part of a file that is no hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What headers of their own say about the entry after them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    attributes: Option<Attributes>,
}

#[derive(Default)]
struct Attributes {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, content: 0, padding: 0, entries: 0 }
    }

    /// The next entry; `None` at the archive's end mark. A stream that ends before that is an error.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return self.end().map(|()| None) };
            let place = match header.entry_type() {
                EntryType::GNULongName => &mut extensions.name,
                EntryType::GNULongLink => &mut extensions.target,
                EntryType::XHeader => {
                    let attributes = Attributes::parse(&self.extension(&header)?);
                    if extensions.attributes.replace(attributes).is_some() {
                        return Err(invalid("the archive describes one entry twice"));
                    }
                    continue;
                }
                // For all entries after it; nothing that it says matters here.
                EntryType::XGlobalHeader => {
                    self.count()?;
                    self.extension(&header)?;
                    continue;
                }
                _ => return self.entry(&header, extensions).map(Some),
            };
            let mut text = self.extension(&header)?;
            while text.pop_if(|byte| *byte == 0).is_some() {}
            if place.replace(text).is_some() {
                return Err(invalid("the archive names one entry twice"));
            }
        }
    }

    /// Reads the next `length` bytes of the present file. The error of the writer is the inner one; the rest of the
    /// file can be left unread then.
    pub(super) fn copy(&mut self, length: u64, to: &mut impl io::Write) -> io::Result<io::Result<()>> {
        let mut left = length.min(self.content);
        if left == 0 {
            return Ok(Ok(()));
        }
        let mut buffer = [0; 32 << 10];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = read(&mut self.from, &mut buffer[..most])?;
            if count == 0 {
                return Err(cut_short());
            }
            left -= count as u64;
            self.content -= count as u64;
            if let Err(error) = to.write_all(&buffer[..count]) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// Passes over what was not read of the present entry.
    fn skip(&mut self) -> io::Result<()> {
        self.content = self.content.checked_add(self.padding).ok_or_else(too_large)?;
        self.padding = 0;
        self.copy(self.content, &mut io::sink())?
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK as usize];
        self.block(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum's own field counts as spaces.
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(invalid("this is no archive"));
        }
        Ok(Some(header))
    }

    /// Reads what fills the archive's last record. Whoever stopped at the end mark would seem to want no more from a
    /// command that has not said yet how it ended.
    fn end(&mut self) -> io::Result<()> {
        let limit = ARCHIVE_TAIL_LIMIT + 1;
        let count = io::copy(&mut self.from.by_ref().take(limit), &mut io::sink())?;
        if count < limit { Ok(()) } else { Err(invalid("the archive goes on after its end")) }
    }

    fn block(&mut self, block: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_short(),
            _ => error,
        })
    }

    fn expect(&mut self, size: u64) -> io::Result<()> {
        let whole = size.checked_next_multiple_of(BLOCK).ok_or_else(too_large)?;
        (self.content, self.padding) = (size, whole - size);
        Ok(())
    }

    /// Reads the content of a header that describes another entry.
    fn extension(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.entry_size()?;
        if size > ARCHIVE_EXTENSION_LIMIT {
            let message = format!("a name or an attribute in the archive has {size} bytes");
            return Err(invalid(format!("{message}: the limit is {ARCHIVE_EXTENSION_LIMIT}")));
        }
        self.expect(size)?;
        let mut text = Vec::new();
        self.copy(size, &mut text)??;
        Ok(text)
    }

    fn count(&mut self) -> io::Result<()> {
        self.entries += 1;
        if self.entries > ARCHIVE_ENTRIES_LIMIT {
            return Err(invalid(format!("the archive has more than {ARCHIVE_ENTRIES_LIMIT} entries")));
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> io::Result<Entry> {
        self.count()?;
        let attributes = extensions.attributes.unwrap_or_default();
        let size = match attributes.size {
            Some(size) => size,
            None => header.entry_size()?,
        };
        let name = attributes.name.or(extensions.name);
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = attributes.target.or(extensions.target);
        let target = || target.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default();
        let kind = match header.entry_type() {
            _ if attributes.sparse => {
                EntryKind::Unreadable("its holes are described in a way of later archives")
            }
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                EntryKind::File { size, pieces: vec![Piece { offset: 0, length: size }] }
            }
            EntryType::GNUSparse => self.sparse(header, size)?,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Link => EntryKind::HardLink(target()),
            EntryType::Symlink => EntryKind::Symlink(target()),
            _ => EntryKind::Other,
        };
        self.expect(size)?;
        let (mode, modified) = (header.mode().unwrap_or(0o644), header.mtime().unwrap_or(0));
        Ok(Entry { name, mode, modified, kind })
    }

    /// The map of a file with holes, which stands in the header and in blocks after it.
    fn sparse(&mut self, header: &Header, stored: u64) -> io::Result<EntryKind> {
        const CONTRADICTORY: EntryKind = EntryKind::Unreadable("its map of holes contradicts itself");
        let Some(gnu) = header.as_gnu() else { return Err(invalid("a map of holes in the wrong header")) };
        let mut map = Map::default();
        map.add(&gnu.sparse);
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.block(block.as_mut_bytes())?;
            map.add(&block.sparse);
            if map.places > SPARSE_PIECES_LIMIT {
                return Err(invalid(format!("a file has more than {SPARSE_PIECES_LIMIT} holes")));
            }
            extended = block.is_extended();
        }
        let fits = |size: &u64| !map.contradictory && map.stored == stored && map.end <= *size;
        let size = gnu.real_size().ok().filter(fits);
        Ok(size.map_or(CONTRADICTORY, |size| EntryKind::File { size, pieces: map.pieces }))
    }
}

/// A map of holes as it is read.
#[derive(Default)]
struct Map {
    pieces: Vec<Piece>,
    /// How many pieces there was place for.
    places: usize,
    /// Where the last piece ends in the file.
    end: u64,
    /// How much of the file is in the archive.
    stored: u64,
    contradictory: bool,
}

impl Map {
    fn add(&mut self, pieces: &[GnuSparseHeader]) {
        self.places += pieces.len();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let numbers = piece.offset().ok().zip(piece.length().ok());
            let ends = numbers.and_then(|(offset, length)| {
                Some((offset.checked_add(length)?, self.stored.checked_add(length)?))
            });
            match (numbers, ends) {
                (Some((offset, length)), Some((end, stored)))
                    // Pieces follow each other, and each but the last fills whole blocks.
                    if offset >= self.end && (length == 0 || self.stored.is_multiple_of(BLOCK)) =>
                {
                    self.pieces.push(Piece { offset, length });
                    (self.end, self.stored) = (end, stored);
                }
                _ => self.contradictory = true,
            }
        }
    }
}

impl Attributes {
    /// Reads records like `30 path=some/name\n`, up to the first one that isn't one.
    fn parse(mut text: &[u8]) -> Self {
        let mut attributes = Self::default();
        while let Some((key, value, rest)) = record(text) {
            match key {
                b"path" => attributes.name = Some(value.to_owned()),
                b"linkpath" => attributes.target = Some(value.to_owned()),
                b"size" => attributes.size = str::from_utf8(value).ok().and_then(|size| size.parse().ok()),
                _ => attributes.sparse |= key.starts_with(b"GNU.sparse."),
            }
            text = rest;
        }
        attributes
    }
}

/// The first record's key and value, and what follows it. Its length counts the whole record, and may be all that
/// tells its end: a name may have newlines.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

fn too_large() -> io::Error {
    invalid("the archive has an impossible size")
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short")
}
