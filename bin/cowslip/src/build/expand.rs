//! Variables in the words of a Dockerfile: `$NAME`, `${NAME}`, `${NAME:-else}`, `${NAME:+then}`; `\\$` is a
//! dollar sign.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Puts in the values of variables, and takes quotes away: the word as a shell has it. A variable that is not
/// there is empty.
pub(super) fn expand(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' if quote.is_none() => quote = Some(c),
            c if quote == Some(c) => quote = None,
            '\\' if quote != Some('\'') => match chars.next() {
                // In quotes only these are special.
                Some(next) if quote.is_some() && !matches!(next, '"' | '\\' | '$') => {
                    out.push('\\');
                    out.push(next);
                }
                Some(next) => out.push(next),
                None => out.push('\\'),
            },
            '$' if quote != Some('\'') => out.push_str(&variable(&mut chars, values)?),
            c => out.push(c),
        }
    }
    match quote {
        Some(quote) => Err(format!("a {quote} is not closed")),
        None => Ok(out),
    }
}

fn variable(
    chars: &mut Peekable<Chars<'_>>,
    values: &BTreeMap<String, String>,
) -> Result<String, String> {
    let value = |name: &str| values.get(name).cloned().unwrap_or_default();
    if chars.peek() != Some(&'{') {
        let name = name(chars);
        return Ok(match name.is_empty() {
            true => "$".to_owned(),
            false => value(&name),
        });
    }
    chars.next();
    let name = name(chars);
    let mut rest = String::new();
    let mut depth = 1;
    for c in chars.by_ref() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        rest.push(c);
    }
    if depth > 0 {
        return Err("a ${ is not closed".to_owned());
    }
    if name.is_empty() {
        return Err(format!("${{{rest}}} names no variable"));
    }
    let is_set = !value(&name).is_empty();
    match (rest.get(..2), rest.get(2..)) {
        _ if rest.is_empty() => Ok(value(&name)),
        (Some(":-"), Some(_)) if is_set => Ok(value(&name)),
        (Some(":-"), Some(otherwise)) => expand(otherwise, values),
        (Some(":+"), Some(then)) if is_set => expand(then, values),
        (Some(":+"), Some(_)) => Ok(String::new()),
        _ => Err(format!("${{{name}{rest}}}: only :- and :+ are known here")),
    }
}

fn name(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(&c) = chars.peek() {
        let fits = c == '_' || c.is_ascii_alphabetic() || (!name.is_empty() && c.is_ascii_digit());
        if !fits {
            break;
        }
        name.push(c);
        chars.next();
    }
    name
}

/// `NAME=value NAME="two words"`, or the old form `NAME all the rest`; values are not expanded yet.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    let first = words.first().ok_or("there is nothing to set")?;
    if !first.contains('=') {
        let (name, value) = text
            .trim()
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("\"{first}\" has no value: write {first}=VALUE"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("\"{word}\" is not NAME=VALUE")),
    };
    words.iter().map(pair).collect()
}

/// Words as a shell parts them, with their quotes.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            '\'' | '"' if quote.is_none() => quote = Some(c),
            c if quote == Some(c) => quote = None,
            c if c.is_whitespace() && quote.is_none() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if let Some(quote) = quote {
        return Err(format!("a {quote} is not closed"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_their_values() {
        let values = BTreeMap::from([
            ("A".to_owned(), "one".to_owned()),
            ("B_2".to_owned(), "two words".to_owned()),
            ("EMPTY".to_owned(), String::new()),
        ]);
        for (text, expected) in [
            ("$A", "one"),
            ("x${A}y", "xoney"),
            ("$A-$B_2", "one-two words"),
            ("$A.b", "one.b"),
            ("$NONE", ""),
            ("${NONE:-else}", "else"),
            ("${EMPTY:-$A}", "one"),
            ("${A:-else}", "one"),
            ("${A:+then}", "then"),
            ("${NONE:+then}", ""),
            ("${NONE:-${A}x}", "onex"),
            (r"\$A", "$A"),
            (r"a\\b", r"a\b"),
            ("'$A'", "$A"),
            ("\"$A b\"", "one b"),
            (r#""a\nb""#, r"a\nb"),
            ("100$", "100$"),
            ("$1", "$1"),
        ] {
            assert_eq!(expand(text, &values).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["${A", "${A:?x}", "${}", "'x", "\"x"] {
            assert!(expand(bad, &values).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_are_read_in_both_forms() {
        let own = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<Vec<_>>()
        };
        for (text, expected) in [
            ("A=b", own(&[("A", "b")])),
            (
                "A=b C=\"d e\" F=",
                own(&[("A", "b"), ("C", "\"d e\""), ("F", "")]),
            ),
            ("A all the  rest", own(&[("A", "all the  rest")])),
            (r"A=b\ c D=e", own(&[("A", r"b\ c"), ("D", "e")])),
        ] {
            assert_eq!(pairs(text), Ok(expected), "{text}");
        }
        for bad in ["", "A", "A=b C", "=b", "A=\"b"] {
            assert!(pairs(bad).is_err(), "{bad}");
        }
    }
}
