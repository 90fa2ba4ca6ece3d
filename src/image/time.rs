//! Points in time as files have them, to the nanosecond.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Time(i64);

impl Time {
    /// The present.
    pub(super) fn now() -> Self {
        SystemTime::now().into()
    }

    /// When a file was changed last.
    pub(super) fn modified(metadata: &Metadata) -> Self {
        Self(metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()))
    }

    /// So much later.
    pub(super) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self(0).plus(since),
            Err(before) => {
                Self(i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanoseconds| -nanoseconds))
            }
        }
    }
}

/// As in `2026-08-24 13:07:09 UTC`.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", DateTime::from_timestamp_nanos(self.0).format("%Y-%m-%d %H:%M:%S UTC"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_787_576_829, "2026-08-24 13:07:09 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(Time(seconds * 1_000_000_000).to_string(), shown);
        }
    }

    #[test]
    fn both_kinds_of_a_files_time_are_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for time in [SystemTime::now(), UNIX_EPOCH - Duration::from_nanos(1_500_000_001)] {
            file.as_file().set_modified(time).unwrap();
            let metadata = file.as_file().metadata().unwrap();
            assert_eq!(Time::modified(&metadata), Time::from(time));
        }
    }
}
