//! Code as a flat list of tokens, without what only tests compile; comments are no part of it.

use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Word(String),
    Mark(char),
    Open(char),
    Close(char),
    Literal(String),
}

/// A token and the line it stands in.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) token: Token,
    pub(crate) line: usize,
}

impl Placed {
    pub(crate) fn word(&self) -> Option<&str> {
        match &self.token {
            Token::Word(word) => Some(word),
            Token::Mark(_) | Token::Open(_) | Token::Close(_) | Token::Literal(_) => None,
        }
    }

    pub(crate) fn is(&self, mark: char) -> bool {
        self.token == Token::Mark(mark)
    }
}

/// The tokens of a file.
pub(crate) fn tokens(text: &str) -> Result<Vec<Placed>, String> {
    let stream = TokenStream::from_str(text).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    flatten(stream, &mut all);
    Ok(without_tests(&all))
}

fn flatten(stream: TokenStream, into: &mut Vec<Placed>) {
    for tree in stream {
        let line = tree.span().start().line;
        let token = match tree {
            TokenTree::Ident(word) => Token::Word(word.to_string()),
            TokenTree::Punct(mark) => Token::Mark(mark.as_char()),
            TokenTree::Literal(literal) => Token::Literal(literal.to_string()),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ('(', ')'),
                    Delimiter::Brace => ('{', '}'),
                    Delimiter::Bracket | Delimiter::None => ('[', ']'),
                };
                let end = group.span_close().start().line;
                into.push(Placed {
                    token: Token::Open(open),
                    line,
                });
                flatten(group.stream(), into);
                into.push(Placed {
                    token: Token::Close(close),
                    line: end,
                });
                continue;
            }
        };
        into.push(Placed { token, line });
    }
}

/// Leaves out each item behind `#[cfg(test)]`, to its semicolon or the end of its braces.
fn without_tests(all: &[Placed]) -> Vec<Placed> {
    let marker = [
        Token::Mark('#'),
        Token::Open('['),
        Token::Word("cfg".to_owned()),
        Token::Open('('),
        Token::Word("test".to_owned()),
        Token::Close(')'),
        Token::Close(']'),
    ];
    let mut kept = Vec::with_capacity(all.len());
    let mut at = 0;
    while let Some(placed) = all.get(at) {
        let here = all.iter().skip(at).take(marker.len());
        if here.map(|placed| &placed.token).eq(&marker) {
            at = end_of_item(all, at + marker.len());
        } else {
            kept.push(placed.clone());
            at += 1;
        }
    }
    kept
}

fn end_of_item(all: &[Placed], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, placed) in all.iter().enumerate().skip(start) {
        match placed.token {
            Token::Open(_) => depth += 1,
            Token::Close(closed) => {
                depth = depth.saturating_sub(1);
                if depth == 0 && closed == '}' {
                    return at + 1;
                }
            }
            Token::Mark(';') if depth == 0 => return at + 1,
            Token::Mark(_) | Token::Word(_) | Token::Literal(_) => {}
        }
    }
    all.len()
}

/// Whether a double colon begins at this place.
pub(crate) fn is_path(tokens: &[Placed], at: usize) -> bool {
    let is = |at: usize| tokens.get(at).is_some_and(|placed| placed.is(':'));
    is(at) && is(at + 1)
}

/// The words of a text, letters, digits and underscores.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn what_only_tests_compile_and_comments_are_left_out() {
        let text = "/// gone\nfn kept() {}\n#[cfg(test)]\nmod tests { fn left_out() {} }\nfn also() {}\n#[cfg(test)]\nuse a::b;";
        let all = tokens(text).unwrap();
        let words: Vec<&str> = all.iter().filter_map(super::Placed::word).collect();
        assert_eq!(words, ["doc", "fn", "kept", "fn", "also"]);
    }
}
