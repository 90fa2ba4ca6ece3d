//! Waiting until what a guest needs is there, woken by the kernel and never by a clock.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::{Need, missing, network};
use crate::interrupt::Interrupt;

/// As many symbolic links in one path as the kernel follows.
const MOST_LINKS: usize = 40;

/// Waits until all are there, but no longer than until the deadline or until the program is asked to end.
///
/// What appears on another machine's side of a network file system is not told by the kernel; it is found when
/// something else wakes the wait, or at its end.
///
/// # Errors
/// Those that are not there at the end.
pub fn wait(needs: &[Need], deadline: Instant, interrupt: &Interrupt) -> Result<(), Vec<Need>> {
    wait_and(needs, deadline, interrupt, || {})
}

/// `before_sleep` is called each time between looking and going to sleep, where nothing may get lost.
fn wait_and(
    needs: &[Need],
    deadline: Instant,
    interrupt: &Interrupt,
    mut before_sleep: impl FnMut(),
) -> Result<(), Vec<Need>> {
    let mut absent = missing(needs);
    if absent.is_empty() {
        return Ok(());
    }
    let watch = Watch::new();
    loop {
        // What changes after this wakes the sleep below, so that only what is looked at afterwards is known.
        absent.iter().filter_map(|need| need.path()).for_each(|path| watch.add(path));
        absent = missing(needs);
        if absent.is_empty() {
            return Ok(());
        }
        let give_up = |absent: Vec<&Need>| Err(absent.into_iter().cloned().collect());
        if interrupt.is_asked() || deadline <= Instant::now() {
            return give_up(absent);
        }
        before_sleep();
        if !watch.sleep(deadline, interrupt) {
            return give_up(absent);
        }
    }
}

/// What the kernel tells of changes. A process may have only so many of these; one that can't be had costs nothing but
/// time: its changes are seen when something else happens, or at the deadline.
struct Watch {
    /// Names that appear in directories.
    names: Option<OwnedFd>,
    /// File systems that are mounted.
    mounts: Option<File>,
    /// Network devices and addresses.
    network: Option<OwnedFd>,
}

impl Watch {
    fn new() -> Watch {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Watch {
            names: inotify::init(flags).ok(),
            mounts: File::open("/proc/self/mountinfo").ok(),
            network: network::changes().ok(),
        }
    }

    /// Has a change of what this path leads to wake the sleep: of every directory on the way, up to the first name
    /// that is not there, through symbolic links as the kernel follows them.
    fn add(&self, path: &Path) {
        let mut rest: VecDeque<OsString> = names(path);
        let mut here = if path.is_absolute() { PathBuf::from("/") } else { PathBuf::from(".") };
        let mut links = 0;
        loop {
            // Before its names are looked at, so that each of them is either seen now or told of later.
            self.add_directory(&here);
            let Some(name) = rest.pop_front() else { return };
            let next = here.join(&name);
            if let Ok(target) = std::fs::read_link(&next) {
                links += 1;
                if links > MOST_LINKS {
                    return;
                }
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                for name in names(&target).into_iter().rev() {
                    rest.push_front(name);
                }
            } else if next.is_dir() {
                here = next;
            } else {
                return;
            }
        }
    }

    /// A directory that is not there any more has been told of by the one above.
    fn add_directory(&self, directory: &Path) {
        use inotify::WatchFlags as W;
        let Some(names) = &self.names else { return };
        let flags = W::CREATE | W::MOVED_TO | W::MOVE_SELF | W::DELETE_SELF | W::ONLYDIR;
        let _ = inotify::add_watch(names, directory, flags);
    }

    /// Sleeps until something has changed, the deadline has passed or the program is asked to end. `false`: it can't
    /// sleep.
    fn sleep(&self, deadline: Instant, interrupt: &Interrupt) -> bool {
        let mut fds = vec![PollFd::from_borrowed_fd(interrupt.event(), PollFlags::IN)];
        let readable = [&self.names, &self.network].into_iter().flatten();
        fds.extend(readable.map(|fd| PollFd::new(fd, PollFlags::IN)));
        // Always readable; a change is an exception.
        fds.extend(self.mounts.as_ref().map(|fd| PollFd::new(fd, PollFlags::PRI)));
        let left = deadline.saturating_duration_since(Instant::now());
        // One that is too far away to be written down is none.
        let left = Timespec::try_from(left).ok();
        let slept = matches!(poll(&mut fds, left.as_ref()), Ok(_) | Err(rustix::io::Errno::INTR));
        self.drain();
        slept
    }

    fn drain(&self) {
        if let Some(names) = &self.names {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(names.as_fd(), &mut buffer);
            while events.next().is_ok() {}
        }
        if let Some(network) = &self.network {
            network::drain(network);
        }
    }
}

/// The names in a path. `..` is one: the directory above, which after a link is not the one that the text says.
fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Longer than any test takes whose events are not lost.
    const LONG: Duration = Duration::from_secs(300);

    fn disk(path: impl Into<PathBuf>) -> Need {
        Need::Disk { vdev: "xvda".to_owned(), path: path.into() }
    }

    type Step<'a> = Box<dyn FnOnce() + 'a>;

    /// Waits; each step is done between a look and the sleep after it, and must wake that sleep.
    fn wait_through(needs: &[Need], steps: Vec<Step<'_>>) {
        let begun = Instant::now();
        let count = steps.len();
        let mut steps = steps.into_iter();
        let mut done = 0;
        let interrupt = Interrupt::new().expect("a descriptor");
        let result = wait_and(needs, begun + LONG, &interrupt, || {
            if let Some(step) = steps.next() {
                done += 1;
                step();
            }
        });
        assert_eq!((result, done), (Ok(()), count));
        assert!(begun.elapsed() < LONG, "it woke up at the deadline only");
    }

    #[test]
    fn what_is_there_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let interrupt = Interrupt::new().expect("a descriptor");
        interrupt.ask();
        assert_eq!(wait(&[disk(dir.path())], Instant::now(), &interrupt), Ok(()));
        assert_eq!(wait(&[], Instant::now(), &interrupt), Ok(()));
    }

    #[test]
    fn a_file_appears_in_directories_that_appear_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a/b/c/file");
        wait_through(
            &[disk(&file)],
            vec![
                Box::new(|| fs::create_dir(dir.path().join("a")).expect("directory")),
                Box::new(|| fs::create_dir_all(dir.path().join("a/b/c")).expect("directories")),
                Box::new(|| fs::write(&file, "").expect("write")),
            ],
        );
    }

    #[test]
    fn a_directory_is_renamed_into_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("other/vg")).expect("directories");
        fs::write(at("other/vg/web"), "").expect("write");
        // The place is taken by another one that is empty.
        fs::create_dir_all(at("dev/vg")).expect("directories");
        wait_through(
            &[disk(at("dev/vg/web"))],
            vec![
                Box::new(|| fs::rename(at("dev"), at("old")).expect("rename")),
                Box::new(|| fs::rename(at("other"), at("dev")).expect("rename")),
            ],
        );
    }

    #[test]
    fn links_are_followed_to_where_they_lead() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for directory in ["by-id", "nodes", "vg"] {
            fs::create_dir(at(directory)).expect("directory");
        }
        symlink("../vg/web", at("by-id/first")).expect("link");
        wait_through(
            &[disk(at("by-id/./first"))],
            vec![
                // A link into nowhere, one that is absolute, and its target.
                Box::new(|| symlink(at("nodes/dm-0"), at("vg/web")).expect("link")),
                Box::new(|| fs::write(at("nodes/dm-0"), "").expect("write")),
            ],
        );
        fs::remove_file(at("nodes/dm-0")).expect("remove");
        // The link is put somewhere else.
        wait_through(
            &[disk(at("by-id/first"))],
            vec![
                Box::new(|| symlink("../by-id", at("by-id/new")).expect("link")),
                Box::new(|| fs::rename(at("by-id/new"), at("vg/web")).expect("rename")),
            ],
        );
    }

    #[test]
    fn a_circle_of_links_can_be_broken() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        symlink("two", at("one")).expect("link");
        symlink("one", at("two")).expect("link");
        wait_through(
            &[disk(at("one"))],
            vec![
                Box::new(|| fs::write(at("three"), "").expect("write")),
                Box::new(|| fs::rename(at("three"), at("two")).expect("rename")),
            ],
        );
    }

    #[test]
    fn a_file_system_is_mounted() {
        let source = tempfile::tempdir().expect("a directory");
        let target = tempfile::tempdir().expect("a directory");
        fs::write(source.path().join("disk.img"), "").expect("write");
        wait_through(
            &[disk(target.path().join("disk.img"))],
            vec![Box::new(|| {
                rustix::mount::mount_bind(source.path(), target.path()).expect("this test needs root, to mount");
            })],
        );
        rustix::mount::unmount(target.path(), rustix::mount::UnmountFlags::DETACH).expect("unmount");
    }

    #[test]
    fn what_vanishes_meanwhile_is_waited_for_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::create_dir(&one).expect("directory");
        wait_through(
            &[disk(&one), disk(&two)],
            vec![
                Box::new(|| {
                    fs::remove_dir(&one).expect("remove");
                    fs::create_dir(&two).expect("directory");
                }),
                Box::new(|| fs::create_dir(&one).expect("directory")),
            ],
        );
    }

    #[test]
    fn the_deadline_ends_it_and_names_what_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let interrupt = Interrupt::new().expect("a descriptor");
        let needs = [disk(dir.path()), disk(dir.path().join("x")), Need::Bridge("no-such-bridge".to_owned())];
        let begun = Instant::now();
        let limit = Duration::from_millis(30);
        assert_eq!(wait(&needs, begun + limit, &interrupt), Err(needs[1..].to_vec()));
        assert!(begun.elapsed() >= limit);
    }

    #[test]
    fn being_asked_to_end_ends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let needs = [disk(dir.path().join("x"))];
        let interrupt = Interrupt::new().expect("a descriptor");
        let begun = Instant::now();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_and(&needs, begun + LONG, &interrupt, || interrupt.ask()));
            assert_eq!(waiting.join().expect("no panic"), Err(needs.to_vec()));
        });
        assert!(begun.elapsed() < LONG);
    }

    /// In a network of its own, which only a process of its own can have.
    #[test]
    fn a_network_device_and_its_address_appear() {
        const ALONE: &str = "XENDOMAINS_TEST_HAS_ITS_OWN_NETWORK";
        if std::env::var_os(ALONE).is_none() {
            let test = thread::current().name().expect("the test's name").to_owned();
            let output = Command::new("unshare")
                .arg("--net")
                .arg(std::env::current_exe().expect("this test"))
                .args(["--exact", &test, "--nocapture"])
                .env(ALONE, "1")
                .output()
                .expect("unshare");
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "this test needs root: {said}");
            return;
        }
        let ip = |words: &str| {
            let status = Command::new("ip").args(words.split(' ')).status().expect("ip, of the package iproute2");
            assert!(status.success(), "ip {words}");
        };
        wait_through(
            &[Need::Bridge("xenbr0".to_owned()), Need::Gateway("xenbr0".to_owned())],
            vec![
                Box::new(|| {
                    ip("link set lo name xenbr0");
                    ip("address add 2001:db8::1/64 dev xenbr0");
                }),
                Box::new(|| ip("address add 192.0.2.1/24 dev xenbr0")),
            ],
        );
    }
}
