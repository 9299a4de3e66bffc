//! The command line as it was typed, to be typed again.

use std::ffi::OsString;

use url::Url;

/// Returns this process's command line, quoted for a shell.
pub(super) fn command_again() -> String {
    quoted(std::env::args_os().skip(1))
}

fn quoted(args: impl Iterator<Item = OsString>) -> String {
    let args = args.map(|arg| quote(&without_secret(arg.to_string_lossy().into_owned())));
    std::iter::once("promptmill".to_owned()).chain(args).collect::<Vec<_>>().join(" ")
}

/// Hides what an address may hold beside its place: a password, or a signature in its query.
fn without_secret(arg: String) -> String {
    match Url::parse(&arg) {
        Ok(mut url) if url.has_host() && (url.query().is_some() || url.password().is_some()) => {
            // Neither fails for an address with a host.
            let _ = url.set_password(None);
            url.set_query(url.query().map(|_| "…"));
            url.into()
        }
        _ => arg,
    }
}

fn quote(arg: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !arg.is_empty() && arg.chars().all(is_plain) {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted_and_holds_no_secret() {
        let args = ["run", "a b.jsonl", "it's", "", "https://u:s3cret@h/x?sig=s3cret", "--batch=n"];
        let said = quoted(args.into_iter().map(OsString::from));
        assert!(!said.contains("s3cret"), "{said}");
        assert!(
            said.starts_with(r"promptmill run 'a b.jsonl' 'it'\''s' '' 'https://u@h/x?"),
            "{said}"
        );
        assert!(said.ends_with(" --batch=n"), "{said}");
    }
}
