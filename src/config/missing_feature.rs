//! Settings of parts that this build leaves out: each is an error that names the feature, where the
//! parser would call the key unknown.

use toml::{Table, Value};

use super::error::ConfigError;
use domain::build_feature::MissingFeatureError;

/// A setting by its path, in which `*` is any entry of a list; its feature; and if that is built in.
type FeatureSetting = (&'static [&'static str], &'static str, bool);

const AZURE: bool = cfg!(feature = "azure");

const SETTINGS: [FeatureSetting; 6] = [
    (&["queue", "service_bus"], "azure", AZURE),
    (&["store", "cosmos"], "azure", AZURE),
    (&["deployments", "*", "credential"], "azure", AZURE),
    (&["documents"], "documents", cfg!(feature = "documents")),
    (&["documents", "credential"], "azure", AZURE),
    (&["serve"], "serve", cfg!(feature = "serve")),
];

/// # Errors
/// If a setting belongs to a part that this build leaves out.
pub(super) fn check(table: &Table) -> Result<(), ConfigError> {
    check_against(&SETTINGS, table)
}

fn check_against(settings: &[FeatureSetting], table: &Table) -> Result<(), ConfigError> {
    for (path, feature, is_built) in settings {
        if !is_built && let Some(key) = find(table, path) {
            return Err(ConfigError::Feature { key, source: MissingFeatureError { feature } });
        }
    }
    Ok(())
}

/// Returns the key as it stands in the table, with numbers for entries of lists.
fn find(table: &Table, path: &[&str]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let value = table.get(*first)?;
    match (value, rest) {
        (_, []) => Some((*first).to_owned()),
        (Value::Table(inner), _) => find(inner, rest).map(|key| format!("{first}.{key}")),
        (Value::Array(items), ["*", rest @ ..]) => {
            items.iter().enumerate().find_map(|(n, item)| {
                find(item.as_table()?, rest).map(|key| format!("{first}.{n}.{key}"))
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_a_part_that_is_left_out_names_its_feature() {
        let settings: Vec<_> = SETTINGS.map(|(path, feature, _)| (path, feature, false)).to_vec();
        let said = |text: &str| check_against(&settings, &text.parse().unwrap());
        let cases = [
            ("[queue.service_bus]\nqueue = \"q\"", "queue.service_bus: ", "azure"),
            ("store = { cosmos = { database = \"d\" } }", "store.cosmos: ", "azure"),
            (
                "[[deployments]]\n[[deployments]]\ncredential = \"environment\"",
                "deployments.1.credential: ",
                "azure",
            ),
            ("[documents]\nsource = \"docs\"", "documents: ", "documents"),
            ("[serve]\n", "serve: ", "serve"),
        ];
        for (text, key, feature) in cases {
            let error = said(text).unwrap_err().to_string();
            let advice = format!("--features {feature} (or full)");
            assert!(error.starts_with(key) && error.ends_with(&advice), "{error}");
        }
        let local = "queue = \"local\"\n[store.local]\n[[deployments]]\nendpoint = \"http://a\"";
        assert!(said(local).is_ok());
    }
}
