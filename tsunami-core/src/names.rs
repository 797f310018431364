//! What things may be called: for each kind of name, one test and the words that say what passes it.

use crate::limits::NAME_LIMIT;

/// What [`is_experiment_name`] asks for.
pub const EXPERIMENT_NAME: &str = "use a letter or digit, then letters, digits, `.`, `_` and `-`";

/// What [`is_group_name`] asks for.
pub const GROUP_NAME: &str = "use a lower-case letter, then lower-case letters, digits and `_`";

/// The same for a JSON Schema.
#[cfg(feature = "experiment")]
pub(crate) const GROUP_NAME_PATTERN: &str = "^[a-z][a-z0-9_]*$";

/// What [`is_variable_name`] asks for.
pub const VARIABLE_NAME: &str = "use letters, digits and `_`, not beginning with a digit";

/// Whether an experiment, step or trial may be called that, or a file after it: `[A-Za-z0-9][A-Za-z0-9._-]*`.
pub fn is_experiment_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether a group or a parameter may be called that: `[a-z][a-z0-9_]*`.
pub fn is_group_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Whether a table of a file, and so a provider, may be called that: `[a-z][a-z0-9_-]*`.
pub fn is_table_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(allowed)
}

/// Whether a shell can have a variable of this name: `[A-Za-z_][A-Za-z0-9_]*`.
pub fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What is wrong with the length of a name, if anything is.
pub(crate) fn wrong_length(name: &str) -> Option<String> {
    (name.len() > NAME_LIMIT).then(|| format!("this name is longer than {NAME_LIMIT} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_name_has_its_letters() {
        for (name, experiment, group, table, variable) in [
            ("redis", true, true, true, true),
            ("a_1", true, true, true, true),
            ("Redis", true, false, false, true),
            ("_a", false, false, false, true),
            ("1a", true, false, false, false),
            ("a.b-c", true, false, false, false),
            ("a-b", true, false, true, false),
            ("-a", false, false, false, false),
            (".a", false, false, false, false),
            ("a/b", false, false, false, false),
            ("a b", false, false, false, false),
            ("a\n", false, false, false, false),
            ("ä", false, false, false, false),
            ("", false, false, false, false),
        ] {
            let seen =
                [is_experiment_name, is_group_name, is_table_name, is_variable_name].map(|is| is(name));
            assert_eq!(seen, [experiment, group, table, variable], "{name:?}");
        }
        assert_eq!(wrong_length(&"n".repeat(NAME_LIMIT)), None);
        assert!(wrong_length(&"n".repeat(NAME_LIMIT + 1)).is_some());
    }
}
