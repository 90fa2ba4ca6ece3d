//! Where on a disk file systems may begin: at its start, and at those of its partitions (MBR and GPT).
//!
//! What stands on the disk was written by a guest. Whatever that is, it only decides which places are read.

use std::io;

/// More partitions than this are not looked for.
const LIMIT: usize = 128;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;

/// A disk.
pub(super) struct Layout<'a> {
    /// What it starts with.
    pub(super) head: &'a [u8],
    /// The unit of its partition table, in bytes.
    pub(super) sector: u64,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// An entry of an MBR's table.
struct Entry {
    kind: u8,
    /// In sectors; from where they count depends on the kind.
    start: u64,
}

impl Layout<'_> {
    /// Where the partitions begin, in bytes; each place once. `read_sector` reads the sector at a place.
    pub(super) fn partitions(
        &self,
        mut read_sector: impl FnMut(u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u64>> {
        let mut starts = Vec::new();
        for entry in table(self.head) {
            if entry.kind == PROTECTIVE {
                starts.extend(self.gpt());
            } else if EXTENDED.contains(&entry.kind) {
                self.logical(entry.start, &mut read_sector, &mut starts)?;
            } else {
                starts.push(entry.start);
            }
        }
        let mut places: Vec<u64> = starts.iter().filter_map(|start| self.place(*start)).collect();
        places.sort_unstable();
        places.dedup();
        places.truncate(LIMIT);
        Ok(places)
    }

    /// A sector's place on the disk, unless it is the first one or beyond the end.
    fn place(&self, sector: u64) -> Option<u64> {
        sector.checked_mul(self.sector).filter(|place| *place > 0 && *place < self.size)
    }

    /// The partitions of a GUID partition table, as far as it is in the head.
    fn gpt(&self) -> Vec<u64> {
        let at = |place: u64| usize::try_from(place).ok().and_then(|place| self.head.get(place..));
        let header = at(self.sector).filter(|header| header.starts_with(b"EFI PART"));
        let Some(header) = header else { return Vec::new() };
        let (Some(table), Some(count), Some(length)) =
            (number(header, 72, 8), number(header, 80, 4), number(header, 84, 4))
        else {
            return Vec::new();
        };
        let Some(entries) = table.checked_mul(self.sector).and_then(at) else { return Vec::new() };
        let length = usize::try_from(length).unwrap_or_default().max(128);
        let entries = entries.chunks_exact(length).take(usize::try_from(count).unwrap_or_default().min(LIMIT));
        let used = entries.filter(|entry| entry[..16] != [0; 16]);
        used.filter_map(|entry| number(entry, 32, 8)).collect()
    }

    /// The logical partitions in an extended one, which are a chain of tables.
    fn logical(
        &self,
        extended: u64,
        read_sector: &mut impl FnMut(u64) -> io::Result<Vec<u8>>,
        starts: &mut Vec<u64>,
    ) -> io::Result<()> {
        let mut here = extended;
        for _ in 0..LIMIT {
            let Some(place) = self.place(here) else { break };
            let mut next = None;
            for entry in table(&read_sector(place)?) {
                if EXTENDED.contains(&entry.kind) {
                    next = extended.checked_add(entry.start);
                } else {
                    starts.extend(here.checked_add(entry.start));
                }
            }
            let Some(next) = next else { break };
            here = next;
        }
        Ok(())
    }
}

/// The used entries of the MBR in a sector.
fn table(sector: &[u8]) -> Vec<Entry> {
    if sector.get(510..512) != Some(&[0x55, 0xaa]) {
        return Vec::new();
    }
    let entries = sector[446..510].chunks_exact(16).filter(|entry| entry[4] != 0);
    entries.filter_map(|entry| Some(Entry { kind: entry[4], start: number(entry, 8, 4)? })).collect()
}

/// The little-endian number of so many bytes at this place.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A sector with an MBR of these kinds and starts.
    pub(in super::super) fn mbr(entries: &[(u8, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (i, (kind, start)) in entries.iter().enumerate() {
            sector[446 + i * 16 + 4] = *kind;
            sector[446 + i * 16 + 8..][..4].copy_from_slice(&start.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    fn found(head: &[u8], sector: u64, size: u64, others: &[(u64, Vec<u8>)]) -> Vec<u64> {
        let read = |place| {
            let other = others.iter().find(|(at, _)| *at == place);
            Ok(other.map_or(vec![0; 512], |(_, bytes)| bytes.clone()))
        };
        Layout { head, sector, size }.partitions(read).unwrap()
    }

    #[test]
    fn a_disk_without_a_table_has_no_partitions() {
        assert_eq!(found(&[0; 4096], 512, 1 << 30, &[]), [0u64; 0]);
        assert_eq!(found(&[], 512, 1 << 30, &[]), [0u64; 0]);
        assert_eq!(found(&mbr(&[]), 512, 1 << 30, &[]), [0u64; 0]);
    }

    #[test]
    fn primary_partitions() {
        let head = mbr(&[(0x83, 2048), (0x82, 8192), (0, 7), (0x83, 2048)]);
        assert_eq!(found(&head, 512, 1 << 30, &[]), [2048 * 512, 8192 * 512]);
        assert_eq!(found(&head, 4096, 1 << 30, &[]), [2048 * 4096, 8192 * 4096]);
        assert_eq!(found(&head, 512, 8192 * 512, &[]), [2048 * 512], "the other one is beyond the end");
    }

    #[test]
    fn logical_partitions() {
        let head = mbr(&[(0x83, 2048), (0x05, 10_000)]);
        let others = [
            (10_000 * 512, mbr(&[(0x83, 63), (0x05, 5000)])),
            (15_000 * 512, mbr(&[(0x8e, 64), (0x05, 9000)])),
            (19_000 * 512, mbr(&[(0x83, 65)])),
        ];
        let expected = [2048, 10_063, 15_064, 19_065].map(|sector| sector * 512);
        assert_eq!(found(&head, 512, 1 << 30, &others), expected);
    }

    #[test]
    fn a_chain_without_an_end_ends() {
        let head = mbr(&[(0x0f, 100)]);
        let others = [(100 * 512, mbr(&[(0x83, 1), (0x0f, 0)]))];
        assert_eq!(found(&head, 512, 1 << 30, &others), [101 * 512]);
    }

    /// A head with a GPT of these starts.
    fn gpt(sector: usize, starts: &[u64]) -> Vec<u8> {
        let mut head = mbr(&[(0xee, 1)]);
        head.resize(64 << 10, 0);
        head[sector..sector + 8].copy_from_slice(b"EFI PART");
        for (at, value) in [(72, 2), (80, 128u64 | 128 << 32)] {
            head[sector + at..][..8].copy_from_slice(&value.to_le_bytes());
        }
        for (i, start) in starts.iter().enumerate() {
            let entry = &mut head[2 * sector + i * 2 * 128..][..128];
            entry[0] = 7;
            entry[32..40].copy_from_slice(&start.to_le_bytes());
        }
        head
    }

    #[test]
    fn a_gpt_of_either_sector_size() {
        for sector in [512, 4096] {
            let head = gpt(sector, &[2048, 5000, 1 << 50]);
            let sector = sector as u64;
            assert_eq!(found(&head, sector, 1 << 30, &[]), [2048 * sector, 5000 * sector]);
        }
        assert_eq!(found(&gpt(512, &[2048])[..700], 512, 1 << 30, &[]), [0u64; 0], "cut off");
        assert_eq!(
            found(&mbr(&[(0xee, 1)]), 512, 1 << 30, &[]),
            [0u64; 0],
            "none behind the MBR that announces one"
        );
    }

    proptest! {
        #[test]
        fn anything_is_read_and_only_the_disk(
            mut head in prop::collection::vec(any::<u8>(), 512..2048),
            sector in prop::sample::select(vec![512u64, 4096]),
            size in 0u64..1 << 40,
            gpt in any::<bool>(),
        ) {
            head[510..512].copy_from_slice(&[0x55, 0xaa]);
            if gpt {
                head[450] = PROTECTIVE;
                head.resize(64 << 10, 7);
                head[512..520].copy_from_slice(b"EFI PART");
            }
            let again = head[..512].to_vec();
            let read = |place: u64| {
                assert!(place < size);
                Ok(again.clone())
            };
            let places = Layout { head: &head, sector, size }.partitions(read).unwrap();
            prop_assert!(places.len() <= LIMIT && places.iter().all(|place| *place < size));
        }
    }
}
