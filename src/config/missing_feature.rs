//! Settings of parts that this build leaves out: each is an error that names the feature, where the
//! parser would call the key unknown.

use toml::{Table, Value};

use super::error::{ConfigError, ConfigFault};
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

/// Returns the settings of parts that this build leaves out.
pub(super) fn faults(table: &Table) -> Vec<ConfigFault> {
    faults_against(&SETTINGS, table)
}

fn faults_against(settings: &[FeatureSetting], table: &Table) -> Vec<ConfigFault> {
    let mut faults: Vec<ConfigFault> = Vec::new();
    for (path, feature, _) in settings.iter().filter(|(_, _, is_built)| !is_built) {
        for key in find(table, path) {
            // A part of what was told needs no telling.
            if !faults.iter().any(|told| key.starts_with(&format!("{}.", told.key))) {
                let source = MissingFeatureError { feature };
                let cause = ConfigError::Feature { key: key.clone(), source };
                faults.push(ConfigFault::new(key, cause));
            }
        }
    }
    faults
}

/// Returns the keys as they stand in the table, with numbers for entries of lists.
fn find(table: &Table, path: &[&str]) -> Vec<String> {
    let Some((first, rest)) = path.split_first() else { return Vec::new() };
    let found = match (table.get(*first), rest) {
        (None, _) => return Vec::new(),
        (Some(_), []) => return vec![(*first).to_owned()],
        (Some(Value::Table(inner)), _) => find(inner, rest),
        (Some(Value::Array(items)), ["*", rest @ ..]) => {
            let tables = items.iter().enumerate().filter_map(|(n, i)| Some((n, i.as_table()?)));
            let keys = |(n, item)| {
                let keys = find(item, rest).into_iter();
                keys.map(move |key| format!("{n}.{key}"))
            };
            tables.flat_map(keys).collect()
        }
        _ => Vec::new(),
    };
    found.into_iter().map(|key| format!("{first}.{key}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_a_part_that_is_left_out_names_its_feature() {
        let settings: Vec<_> = SETTINGS.map(|(path, feature, _)| (path, feature, false)).to_vec();
        let told = |text: &str| faults_against(&settings, &text.parse().unwrap());
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
            let [fault] = &told(text)[..] else { panic!("{text}") };
            let error = fault.to_string();
            let advice = format!("--features {feature} (or full)");
            assert!(error.starts_with(key) && error.ends_with(&advice), "{error}");
        }
        let local = "queue = \"local\"\n[store.local]\n[[deployments]]\nendpoint = \"http://a\"";
        assert!(told(local).is_empty());
    }
}
