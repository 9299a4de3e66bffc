//! Pages from templates. Every value is escaped, and a name that the data lacks is an error.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

/// Renders a page from its template and its data. The filter `thousands` sets commas in a number.
///
/// # Panics
/// If the template names what the data lacks; both are ours, and the test of a page renders it whole.
pub fn render(template: &str, data: &impl Serialize) -> String {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("thousands", |number: u64| with_thousands(number));
    let page = environment.render_str(template, Serde(data));
    page.expect("the template of a page fits its data")
}

/// Formats a number with a comma at every thousand.
pub(crate) fn with_thousands(number: u64) -> String {
    let digits = number.to_string();
    let place = |n: usize| if n > 0 && (digits.len() - n).is_multiple_of(3) { "," } else { "" };
    digits.chars().enumerate().map(|(n, digit)| format!("{}{digit}", place(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(with_thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn no_value_is_taken_for_html() {
        let data = json!({ "n": 12_345, "text": "<b>&\"'" });
        let page = render("<p title=\"{{ text }}\">{{ n|thousands }} {{ text }}</p>", &data);
        assert_eq!(
            page,
            "<p title=\"&lt;b&gt;&amp;&quot;&#x27;\">12,345 &lt;b&gt;&amp;&quot;&#x27;</p>"
        );
    }

    #[test]
    #[should_panic(expected = "fits its data")]
    fn a_name_that_the_data_lacks_is_no_blank() {
        render("{{ missing }}", &json!({}));
    }
}
