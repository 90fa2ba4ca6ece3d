//! The manual page of the settings file, `xendomains.5`, out of the template that packages install.
//!
//! The template is comments: first about the file, then for each group of settings a line `# --- about it ---`, and for
//! each setting a paragraph with `#NAME=DEFAULT` behind it. Lines that are indented are kept as they are. The meaning of
//! mistakes comes from the table that the program goes by.

use crate::known::KNOWN;

/// The page.
pub fn settings_page(template: &str, version: &str) -> String {
    let mut page = format!(
        "'\\\" t\n.TH xendomains 5 \"\" \"xendomains {version}\"\n.SH NAME\nxendomains \\- settings of xendomains(8)\n.SH SYNOPSIS\n\
         \\fI/etc/default/xendomains\\fR or \\fI/etc/sysconfig/xendomains\\fR, the first that exists\n.SH DESCRIPTION\n"
    );
    let mut about = Vec::new();
    // The first line only repeats the synopsis.
    for line in template.lines().skip(1) {
        let text = line.strip_prefix('#').unwrap_or(line);
        if let Some(title) = text.strip_prefix(" --- ").and_then(|text| text.strip_suffix(" ---")) {
            paragraphs(&mut page, &std::mem::take(&mut about));
            let (title, rest) = title.split_once(": ").unwrap_or((title, ""));
            page.push_str(&format!(".SH \"{}\"\n", escape(&title.to_uppercase())));
            if !rest.is_empty() {
                let (first, others) = rest.split_at(1);
                page.push_str(&format!("{}{}.\n", escape(&first.to_uppercase()), escape(others)));
            }
        } else if let Some((name, default)) = text.split_once('=').filter(|(name, _)| is_name(name)) {
            let default = match default {
                "" => "no value".to_owned(),
                "\"\"" => "empty".to_owned(),
                value => value.to_owned(),
            };
            page.push_str(&format!(".TP\n\\fB{}\\fR (default: {})\n", escape(name), escape(&default)));
            paragraphs(&mut page, &std::mem::take(&mut about));
        } else {
            about.push(text.strip_prefix(' ').unwrap_or(text));
        }
    }
    mistakes(&mut page);
    page.push_str(".SH \"SEE ALSO\"\nxendomains(8), xl.cfg(5), xl(1)\n");
    page
}

/// The section about lines that are not understood.
fn mistakes(page: &mut String) {
    page.push_str(MISTAKES);
    page.push_str(".TS\ntab(|);\nlb lb lb\nl l l.\nsetting|not understood|start\n");
    for known in KNOWN {
        let start = if known.start_needs { "refuses (6)" } else { "goes on" };
        let instead = known.instead();
        let instead = instead.strip_suffix(" instead").unwrap_or(&instead);
        page.push_str(&format!("XENDOMAINS_{}|{}|{start}\n", escape(known.name), escape(instead)));
    }
    page.push_str(".TE\n");
}

const MISTAKES: &str = r#".SH MISTAKES
A line that is not understood costs the settings that are on it, and nothing else: a value of the wrong kind, or anything
that only a shell could read.
A quote that is not closed counts as a mistake in the line that it opens on.
DOS line ends and a byte order mark are read over.
Every command names each mistake with file and line, and says what counts instead.
.TP
.B stop
always stops. A step that is not understood is left out, any other setting has its default, and the exit code is 1.
The same if the file can't be read, if that of \fB\-\-config\fR is missing, or if guests run and there is no file at all.
.TP
.BR start ", " restart ", " reload
do the same and end with 1, unless a guest could be booted over its image: where SAVE, RESTORE or
AUTO are not understood, or where a line that is no assignment may set them and none behind it does, no guest is touched
and the exit code is 6.
.TP
.B status
goes by what is understood. It ends with 4 instead of 0 or 1 where start would refuse.
.TP
.BR "plan start" ", " "plan stop"
end as start and stop would.
.TP
.B check
looks at everything all the same, and ends with 6.
.TP
.B monitor
goes by what is understood, and watches.
.PP
A name that is not set, or commented out, has its default.
For the scripts it was off: where a file that was made for them sets other names and not that one, start, stop and check
name each for which this matters.
A file that is made from the template of this program is none of these.
.PP
"#;

fn is_name(text: &str) -> bool {
    text.starts_with("XENDOMAINS_") && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

fn paragraphs(page: &mut String, lines: &[&str]) {
    let (mut verbatim, mut begun) = (false, false);
    for line in lines {
        let indented = line.starts_with("  ");
        if indented != verbatim {
            page.push_str(if indented { ".nf\n" } else { ".fi\n" });
            verbatim = indented;
        }
        if !line.trim().is_empty() {
            page.push_str(&escape(line));
            page.push('\n');
            begun = true;
        } else if begun {
            page.push_str(".sp\n");
            begun = false;
        }
    }
    if verbatim {
        page.push_str(".fi\n");
    }
}

/// As text, whatever is in it.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}
