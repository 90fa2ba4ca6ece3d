//! A process with a SIGCHLD handler of its own. Alone in its process, which has one handler.

mod common;

use common::Fake;
use serde_json::json;
use xenlight::{Cause, Children, Context};

extern "C" fn handler(_signal: libc::c_int) {}

#[test]
fn libxl_does_not_get_to_see_a_foreign_handler() {
    let fake = Fake::new(json!({"domains": []}));
    let open = |children| Context::open(&fake.library, children, None);
    let set = |action: libc::sighandler_t| {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGCHLD, action) };
    };
    for action in [handler as *const () as libc::sighandler_t, libc::SIG_DFL, libc::SIG_IGN] {
        set(action);
        for children in [Children::LibxlReapsOwn, Children::LibxlReapsAll] {
            let opened = open(children);
            match opened {
                Ok(_) => assert!(matches!(action, libc::SIG_DFL | libc::SIG_IGN), "libxl would end the process"),
                Err(e) => {
                    assert!(matches!(e.cause(), Cause::NotAllowed(_)), "{e}");
                    assert!(!matches!(action, libc::SIG_DFL | libc::SIG_IGN), "{e}");
                }
            }
        }
        drop(open(Children::Application).expect("libxl leaves SIGCHLD alone"));
    }
    set(libc::SIG_DFL);
    fake.expect_nothing_left();
}
