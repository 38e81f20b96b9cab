//! Owns conditions written in CEL, the Common Expression Language: checked and typed once, when their document is
//! applied, and then evaluated for each payment without allocating.
//!
//! The grammar is that of the `cel` crate's parser. Evaluating is done here, over a tree whose names and types are
//! settled: it takes a fraction of what an interpreter with named variables takes, its time is bounded by the
//! expression's length, and all that is left to go wrong is arithmetic. The tests compare it with the crate's interpreter.

mod compile;
mod facts;

use std::cmp::Ordering;
use std::fmt::Write as _;

pub(crate) use facts::Facts;

use facts::Field;

/// Longest expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 2_048;
/// Most names, values and operators of an expression.
pub const MAX_NODES: usize = 256;
/// Deepest nesting of an expression.
pub const MAX_DEPTH: u16 = 32;

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than [`MAX_EXPRESSION_BYTES`].
    #[error("it has {0} bytes, more than {MAX_EXPRESSION_BYTES}")]
    Size(usize),
    /// Not CEL, or too deep.
    #[error("it is no CEL expression of at most {MAX_DEPTH} levels: {0}")]
    Syntax(String),
    /// More parts than [`MAX_NODES`].
    #[error("it has more than {MAX_NODES} parts")]
    Parts,
    /// There is no such fact.
    #[error("there is no {name}; there are {known}")]
    Name {
        /// The name as written.
        name: String,
        /// All names that there are.
        known: String,
    },
    /// An operator or function does not take these types.
    #[error("{what} does not take {types}")]
    Types {
        /// The operator or function.
        what: String,
        /// The types of what it was given.
        types: String,
    },
    /// CEL has it, but a condition over a payment does not.
    #[error("{0} cannot be used here")]
    Unsupported(String),
    /// It is no condition.
    #[error("its value is a {0}, not a bool")]
    NoCondition(&'static str),
}

/// Why an expression has no value for a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// A whole number left its 64 bits.
    Overflow,
    /// A whole number was divided by zero.
    DivisionByZero,
}

/// The value of a part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'v> {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(&'v str),
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    Contains,
    StartsWith,
    EndsWith,
}

/// A part whose types fit.
#[derive(Debug)]
enum Node {
    Literal(Literal),
    Field(&'static Field),
    Has(&'static Field),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    If(Box<[Node; 3]>),
    Compare(Comparison, Box<[Node; 2]>),
    Calculate(Arithmetic, Box<[Node; 2]>),
    In(Box<Node>, Box<[Literal]>),
    Search(Search, Box<[Node; 2]>),
    Size(Box<Node>),
    ToInt(Box<Node>),
    ToDouble(Box<Node>),
}

/// A condition over a payment and its features.
#[derive(Debug)]
pub(super) struct Expression {
    root: Node,
    /// Each name that occurs, once.
    fields: Vec<&'static Field>,
}

impl Expression {
    /// Checks an expression and settles its names and types.
    pub(super) fn compile(source: &str) -> Result<Self, Error> {
        compile::compile(source)
    }

    /// Whether the expression needs what history tells.
    pub(super) fn needs_history(&self) -> bool {
        self.fields.iter().any(|field| field.owner == facts::FEATURES)
    }

    /// Whether the condition holds.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Result<bool, Failed> {
        Ok(is_true(self.root.value(facts)?))
    }

    /// The values that it was evaluated over, for a person.
    pub(super) fn detail(&self, facts: &Facts<'_>) -> String {
        let mut detail = String::new();
        for field in &self.fields {
            let separator = if detail.is_empty() { "" } else { ", " };
            let name = (field.owner, field.name);
            // Writing to a String cannot fail.
            let _written = match (field.read)(facts) {
                None => write!(detail, "{separator}{}.{} is unknown", name.0, name.1),
                Some(Value::Bool(value)) => write!(detail, "{separator}{}.{} = {value}", name.0, name.1),
                Some(Value::Int(value)) => write!(detail, "{separator}{}.{} = {value}", name.0, name.1),
                Some(Value::Double(value)) => write!(detail, "{separator}{}.{} = {}", name.0, name.1, rounded(value)),
                Some(Value::Text(value)) => write!(detail, "{separator}{}.{} = {value:?}", name.0, name.1),
            };
        }
        detail
    }
}

/// As many digits as a person wants to read.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

fn is_true(value: Value<'_>) -> bool {
    value == Value::Bool(true)
}

/// The names of all facts, without their owners.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    facts::FIELDS.iter().map(|field| field.name)
}

impl Node {
    fn value<'v>(&'v self, facts: &Facts<'v>) -> Result<Value<'v>, Failed> {
        Ok(match self {
            Self::Literal(literal) => literal.value(),
            Self::Field(field) => (field.read)(facts).unwrap_or(field.of.unknown()),
            Self::Has(field) => Value::Bool((field.read)(facts).is_some()),
            Self::Not(node) => Value::Bool(!is_true(node.value(facts)?)),
            Self::Negate(node) => match node.value(facts)? {
                Value::Int(value) => Value::Int(value.checked_neg().ok_or(Failed::Overflow)?),
                Value::Double(value) => Value::Double(-value),
                other => other,
            },
            Self::And(nodes) => Value::Bool(!settled_by(nodes, facts, false)?),
            Self::Or(nodes) => Value::Bool(settled_by(nodes, facts, true)?),
            Self::If(nodes) => {
                let [condition, then, otherwise] = &**nodes;
                if is_true(condition.value(facts)?) {
                    then.value(facts)?
                } else {
                    otherwise.value(facts)?
                }
            }
            Self::Compare(comparison, nodes) => {
                Value::Bool(comparison.holds(order(nodes[0].value(facts)?, nodes[1].value(facts)?)))
            }
            Self::Calculate(arithmetic, nodes) => arithmetic.apply(nodes[0].value(facts)?, nodes[1].value(facts)?)?,
            Self::In(node, literals) => {
                let value = node.value(facts)?;
                let same = |literal: &Literal| order(value, literal.value()) == Some(Ordering::Equal);
                Value::Bool(literals.iter().any(same))
            }
            Self::Search(search, nodes) => match (nodes[0].value(facts)?, nodes[1].value(facts)?) {
                (Value::Text(text), Value::Text(part)) => Value::Bool(search.holds(text, part)),
                (other, _) => other,
            },
            Self::Size(node) => match node.value(facts)? {
                Value::Text(text) => Value::Int(text.chars().count() as i64),
                other => other,
            },
            Self::ToInt(node) => match node.value(facts)? {
                Value::Double(value) => Value::Int(whole(value)?),
                other => other,
            },
            Self::ToDouble(node) => match node.value(facts)? {
                Value::Int(value) => Value::Double(value as f64),
                other => other,
            },
        })
    }
}

/// Whether either part is `settling`. As CEL has it, a part that settles the whole makes up for one that failed.
fn settled_by(nodes: &[Node; 2], facts: &Facts<'_>, settling: bool) -> Result<bool, Failed> {
    let [first, second] = nodes;
    let first = first.value(facts).map(is_true);
    if first == Ok(settling) {
        return Ok(true);
    }
    match (first, second.value(facts).map(is_true)) {
        (_, Ok(second)) if second == settling => Ok(true),
        (Err(failed), _) | (_, Err(failed)) => Err(failed),
        _ => Ok(false),
    }
}

fn order(a: Value<'_>, b: Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(&b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(&b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(&b),
        (Value::Int(a), Value::Double(b)) => (a as f64).partial_cmp(&b),
        (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(b as f64)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// Towards zero.
fn whole(value: f64) -> Result<i64, Failed> {
    let limit = -(i64::MIN as f64);
    if value > -limit && value < limit {
        Ok(value as i64)
    } else {
        Err(Failed::Overflow)
    }
}

impl Literal {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Double(value) => Value::Double(*value),
            Self::Text(value) => Value::Text(value),
        }
    }
}

impl Comparison {
    fn holds(self, order: Option<Ordering>) -> bool {
        // No order is that of a number that is none: it is unequal to everything and neither less nor greater.
        let Some(order) = order else {
            return self == Self::NotEqual;
        };
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Arithmetic {
    fn apply<'v>(self, a: Value<'v>, b: Value<'v>) -> Result<Value<'v>, Failed> {
        match (a, b) {
            (Value::Int(a), Value::Int(b)) => self.whole(a, b).map(Value::Int),
            (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match self {
                Self::Add => a + b,
                Self::Subtract => a - b,
                Self::Multiply => a * b,
                Self::Divide => a / b,
                Self::Remainder => a % b,
            })),
            _ => Ok(a),
        }
    }

    fn whole(self, a: i64, b: i64) -> Result<i64, Failed> {
        if b == 0 && matches!(self, Self::Divide | Self::Remainder) {
            return Err(Failed::DivisionByZero);
        }
        let result = match self {
            Self::Add => a.checked_add(b),
            Self::Subtract => a.checked_sub(b),
            Self::Multiply => a.checked_mul(b),
            Self::Divide => a.checked_div(b),
            Self::Remainder => a.checked_rem(b),
        };
        result.ok_or(Failed::Overflow)
    }
}

impl Search {
    fn holds(self, text: &str, part: &str) -> bool {
        match self {
            Self::Contains => text.contains(part),
            Self::StartsWith => text.starts_with(part),
            Self::EndsWith => text.ends_with(part),
        }
    }
}

#[cfg(test)]
mod tests;
