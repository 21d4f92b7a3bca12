//! The text of a template, understood. Pure.

use serde_json::Value;

/// Actions within each other.
const MAX_NESTING: usize = 64;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipe),
    Set(String, Pipe),
    /// Conditions with what they lead to, and what is left for none.
    If(Vec<(Pipe, Vec<Node>)>, Vec<Node>),
    With(Option<String>, Pipe, Vec<Node>, Vec<Node>),
    /// Names of key and value.
    Range(Option<String>, Option<String>, Pipe, Vec<Node>, Vec<Node>),
}

/// Commands, each of which gets the value of the one before as its last argument.
pub(super) type Pipe = Vec<Vec<Operand>>;

/// A word of a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// The current value, or a field of it.
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Function(String),
    Group(Pipe, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// `.`, `.A.B`
    Fields(Vec<String>),
    Variable(String, Vec<String>),
    Word(String),
    Literal(Value),
    Open,
    /// `)`, and fields of what is before it.
    Close(Vec<String>),
    Pipe,
    Assign,
    Comma,
}

/// A piece of the text: outside or inside of `{{` and `}}`.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

/// Understands `text`.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter(), depth: 0 };
    match parser.block("")? {
        (nodes, None) => Ok(nodes),
        (_, Some(word)) => Err(format!("`{{{{{word}}}}}` without an action before it")),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut left = text;
    let mut trim = false;
    loop {
        let (plain, rest) = match left.find("{{") {
            Some(at) => (&left[..at], Some(&left[at + 2..])),
            None => (left, None),
        };
        let mut plain = if trim { plain.trim_start() } else { plain };
        let Some(rest) = rest else {
            pieces.push(Piece::Text(plain.to_owned()));
            return Ok(pieces);
        };
        let end = end_of_action(rest).ok_or("an action has no end: `}}` is missing")?;
        let (mut action, after) = (&rest[..end], &rest[end + 2..]);
        if let Some(inner) = action.strip_prefix('-').filter(|inner| inner.starts_with(char::is_whitespace)) {
            (action, plain) = (inner, plain.trim_end());
        }
        trim = false;
        if let Some(inner) = action.strip_suffix('-').filter(|inner| inner.ends_with(char::is_whitespace)) {
            (action, trim) = (inner, true);
        }
        pieces.push(Piece::Text(plain.to_owned()));
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            pieces.push(Piece::Action(tokens(action)?));
        }
        left = after;
    }
}

/// Where the `}}` of an action is, which may have strings.
fn end_of_action(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    // A string without its end is found later, and named.
    text.find("}}").filter(|_| quote.is_some())
}

fn tokens(action: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut left = action.trim_start();
    while let Some(first) = left.chars().next() {
        let (token, rest) = match first {
            '(' => (Token::Open, &left[1..]),
            ')' => {
                let (fields, rest) = fields(&left[1..]);
                (Token::Close(fields), rest)
            }
            '|' => (Token::Pipe, &left[1..]),
            ',' => (Token::Comma, &left[1..]),
            ':' if left.starts_with(":=") => (Token::Assign, &left[2..]),
            '=' => (Token::Assign, &left[1..]),
            '"' => quoted(left)?,
            '`' => {
                let end = left[1..].find('`').ok_or("a string has no end")?;
                (Token::Literal(left[1..=end].into()), &left[end + 2..])
            }
            '.' => {
                let (fields, rest) = fields(left);
                (Token::Fields(fields), rest.strip_prefix('.').unwrap_or(rest))
            }
            '$' => {
                let (name, rest) = word(&left[1..]);
                let (fields, rest) = fields(rest);
                (Token::Variable(name.to_owned(), fields), rest)
            }
            '-' | '0'..='9' => number(left)?,
            c if c.is_alphabetic() || c == '_' => {
                let (name, rest) = word(left);
                (named(name), rest)
            }
            c => return Err(format!("`{}` has no meaning here", c.escape_debug())),
        };
        tokens.push(token);
        left = rest.trim_start();
    }
    if tokens.is_empty() { Err("an action is empty".into()) } else { Ok(tokens) }
}

fn named(name: &str) -> Token {
    match name {
        "true" => Token::Literal(true.into()),
        "false" => Token::Literal(false.into()),
        "nil" => Token::Literal(Value::Null),
        name => Token::Word(name.to_owned()),
    }
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

/// `.A.B` at the beginning of `text`.
fn fields(mut text: &str) -> (Vec<String>, &str) {
    let mut fields = Vec::new();
    while let Some(rest) = text.strip_prefix('.') {
        let (name, after) = word(rest);
        if name.is_empty() {
            break;
        }
        fields.push(name.to_owned());
        text = after;
    }
    (fields, text)
}

fn quoted(text: &str) -> Result<(Token, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Literal(value.into()), &text[at + 1..])),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some(c @ ('"' | '\\' | '\'')) => value.push(c),
                _ => {
                    return Err(
                        "a string has an escape that is not known: \\n, \\t, \\r, \\\" and \\\\ are".into()
                    );
                }
            },
            c => value.push(c),
        }
    }
    Err("a string has no end".into())
}

fn number(text: &str) -> Result<(Token, &str), String> {
    let end = text[1..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(text.len(), |end| end + 1);
    let (digits, rest) = text.split_at(end);
    let whole = digits.parse::<i64>().map(Value::from);
    let value = whole.or_else(|_| digits.parse::<f64>().map(Value::from));
    Ok((Token::Literal(value.map_err(|_| format!("`{digits}` is not a number"))?), rest))
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
}

/// Nodes, and the word that ended them.
type Block = (Vec<Node>, Option<String>);

impl Parser {
    /// Nodes until `end`, `else` or the end of the text. After `else if` the condition is left in front.
    fn block(&mut self, of: &str) -> Result<Block, String> {
        if self.depth > MAX_NESTING {
            return Err(format!("actions are nested more than {MAX_NESTING} deep"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            match tokens.first() {
                Some(Token::Word(word)) if word == "end" => return Ok((nodes, Some("end".into()))),
                Some(Token::Word(word)) if word == "else" => {
                    if tokens.len() > 1 {
                        // `else if X` is `else`, and an `if` that has the same end.
                        let nested = self.action(&tokens[1..], true)?;
                        return Ok((
                            vec![Node::If(vec![(Vec::new(), nodes)], vec![nested])],
                            Some("elif".into()),
                        ));
                    }
                    return Ok((nodes, Some("else".into())));
                }
                _ => nodes.push(self.action(&tokens, false)?),
            }
        }
        match of {
            "" => Ok((nodes, None)),
            of => Err(format!("`{{{{{of}}}}}` has no `{{{{end}}}}`")),
        }
    }

    fn action(&mut self, tokens: &[Token], is_nested: bool) -> Result<Node, String> {
        let rest = tokens.get(1..).unwrap_or_default();
        match tokens.first() {
            Some(Token::Word(word)) if word == "if" => {
                let condition = pipe(rest)?;
                let (body, otherwise) = self.branches("if")?;
                Ok(Node::If(vec![(condition, body)], otherwise))
            }
            _ if is_nested => Err("after `else` only `if` is known".into()),
            Some(Token::Word(word)) if word == "with" => {
                let (names, rest) = names(rest);
                let value = pipe(rest)?;
                let (body, otherwise) = self.branches("with")?;
                Ok(Node::With(names.into_iter().next(), value, body, otherwise))
            }
            Some(Token::Word(word)) if word == "range" => {
                let (mut names, rest) = names(rest);
                let list = pipe(rest)?;
                let (body, otherwise) = self.branches("range")?;
                let value = names.pop();
                Ok(Node::Range(names.pop(), value, list, body, otherwise))
            }
            Some(Token::Variable(name, fields))
                if fields.is_empty() && rest.first() == Some(&Token::Assign) =>
            {
                Ok(Node::Set(name.clone(), pipe(&rest[1..])?))
            }
            _ => Ok(Node::Print(pipe(tokens)?)),
        }
    }

    /// The nodes between an action and its `end`, and those after `else`.
    fn branches(&mut self, of: &str) -> Result<(Vec<Node>, Vec<Node>), String> {
        self.depth += 1;
        let branches = match self.block(of)? {
            (mut nodes, Some(word)) if word == "elif" => match nodes.pop() {
                Some(Node::If(mut first, otherwise)) => {
                    Ok((first.pop().map(|(_, body)| body).unwrap_or_default(), otherwise))
                }
                _ => Err("`else` has no action before it".to_owned()),
            },
            (body, Some(word)) if word == "else" => {
                let (otherwise, end) = self.block(of)?;
                match end.as_deref() {
                    Some("end") => Ok((body, otherwise)),
                    _ => Err("`else` comes twice".to_owned()),
                }
            }
            (body, _) => Ok((body, Vec::new())),
        };
        self.depth -= 1;
        branches
    }
}

/// `$a, $b :=` at the beginning.
fn names(tokens: &[Token]) -> (Vec<String>, &[Token]) {
    match tokens {
        [Token::Variable(a, _), Token::Comma, Token::Variable(b, _), Token::Assign, rest @ ..] => {
            (vec![a.clone(), b.clone()], rest)
        }
        [Token::Variable(a, _), Token::Assign, rest @ ..] => (vec![a.clone()], rest),
        rest => (Vec::new(), rest),
    }
}

fn pipe(tokens: &[Token]) -> Result<Pipe, String> {
    let mut left = tokens.iter();
    let pipe = pipe_until(&mut left, false, 0)?.0;
    Ok(pipe)
}

fn pipe_until(
    tokens: &mut std::slice::Iter<'_, Token>,
    in_group: bool,
    depth: usize,
) -> Result<(Pipe, Vec<String>), String> {
    if depth > MAX_NESTING {
        return Err(format!("parentheses are nested more than {MAX_NESTING} deep"));
    }
    let mut pipe: Pipe = vec![Vec::new()];
    let checked = |pipe: Pipe| match pipe.iter().any(Vec::is_empty) {
        true => Err("a command is empty".to_owned()),
        false => Ok(pipe),
    };
    while let Some(token) = tokens.next() {
        let operand = match token {
            Token::Fields(fields) => Operand::Dot(fields.clone()),
            Token::Variable(name, fields) => Operand::Variable(name.clone(), fields.clone()),
            Token::Word(name) => Operand::Function(name.clone()),
            Token::Literal(value) => Operand::Literal(value.clone()),
            Token::Open => {
                let (group, fields) = pipe_until(tokens, true, depth + 1)?;
                Operand::Group(group, fields)
            }
            Token::Close(fields) if in_group => return Ok((checked(pipe)?, fields.clone())),
            Token::Close(_) => return Err("`)` without `(`".into()),
            Token::Pipe => {
                pipe.push(Vec::new());
                continue;
            }
            Token::Assign | Token::Comma => return Err("`:=` and `,` have no place here".into()),
        };
        if let Some(command) = pipe.last_mut() {
            command.push(operand);
        }
    }
    if in_group { Err("`(` without `)`".into()) } else { Ok((checked(pipe)?, Vec::new())) }
}
