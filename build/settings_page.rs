//! The manual page of the settings file, `xendomains.5`, out of the template that packages install.
//!
//! The template is comments: first about the file, then for each group of settings a line `# --- about it ---`, and for
//! each setting a paragraph with `#NAME=DEFAULT` behind it. Lines that are indented are kept as they are.

/// The page.
pub fn settings_page(template: &str, version: &str) -> String {
    let mut page = format!(
        ".TH xendomains 5 \"\" \"xendomains {version}\"\n.SH NAME\nxendomains \\- settings of xendomains(8)\n.SH SYNOPSIS\n\
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
    page.push_str(".SH \"SEE ALSO\"\nxendomains(8), xl.cfg(5), xl(1)\n");
    page
}

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
