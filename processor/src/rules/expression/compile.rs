//! Owns the step from an expression's text to a tree whose names and types are settled.
//!
//! Comes before [`super::Expression::holds`]. Everything that can be wrong with an expression but its arithmetic is found
//! here, when a document is applied.

use cel::IdedExpr;
use cel::common::ast::operators as op;
use cel::common::ast::{CallExpr, Expr, LiteralValue, SelectExpr};
use cel::parser::PrattParser;

use super::facts::{self, Field, Type};
use super::{
    Arithmetic, Comparison, Error, Expression, Literal, MAX_DEPTH, MAX_EXPRESSION_BYTES, MAX_NODES, Node, Search,
};

/// Compiles an expression.
pub(super) fn compile(source: &str) -> Result<Expression, Error> {
    if source.len() > MAX_EXPRESSION_BYTES {
        return Err(Error::Size(source.len()));
    }
    let parser = PrattParser::new().max_recursion_depth(MAX_DEPTH);
    let parsed = parser.parse(source).map_err(|errors| {
        let first = errors.errors.first();
        Error::Syntax(first.map_or_else(String::new, |error| format!("{} (at {})", error.msg, error.pos.1)))
    })?;
    let mut compiler = Compiler::default();
    let (root, of) = compiler.node(&parsed)?;
    if of != Type::Bool {
        return Err(Error::NoCondition(of.name()));
    }
    let fields = compiler.fields;
    Ok(Expression { root, fields })
}

type Typed = (Node, Type);

#[derive(Default)]
struct Compiler {
    fields: Vec<&'static Field>,
    nodes: usize,
}

impl Compiler {
    fn node(&mut self, parsed: &IdedExpr) -> Result<Typed, Error> {
        // No part is deeper than there are parts, so that this bounds the stack as well.
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Error::Parts);
        }
        match &parsed.expr {
            Expr::Literal(value) => {
                let literal = literal(value)?;
                let of = literal.of();
                Ok((Node::Literal(literal), of))
            }
            Expr::Select(select) => {
                let field = self.field(select)?;
                if select.test {
                    return Ok((Node::Has(field), Type::Bool));
                }
                Ok((Node::Field(field), field.of))
            }
            Expr::Call(call) => self.call(call),
            Expr::Ident(name) => Err(unknown(name)),
            Expr::List(_) => unsupported("a list anywhere but after in"),
            Expr::Comprehension(_) => unsupported("a macro other than has"),
            Expr::Map(_) | Expr::Struct(_) => unsupported("a map or a message"),
            Expr::Unspecified => unsupported("nothing"),
        }
    }

    fn field(&mut self, select: &SelectExpr) -> Result<&'static Field, Error> {
        let Expr::Ident(owner) = &select.operand.expr else {
            return Err(unknown(&select.field));
        };
        let name = &select.field;
        let field = facts::find(owner, name).ok_or_else(|| unknown(&format!("{owner}.{name}")))?;
        if !self.fields.iter().any(|known| std::ptr::eq(*known, field)) {
            self.fields.push(field);
        }
        Ok(field)
    }

    fn call(&mut self, call: &CallExpr) -> Result<Typed, Error> {
        let name = call.func_name.as_str();
        let arguments = call.target.as_deref().into_iter().chain(&call.args);
        let arguments: Vec<&IdedExpr> = arguments.collect();
        match (name, call.target.is_some(), arguments.as_slice()) {
            (op::LOGICAL_AND, false, [a, b]) => Ok((Node::And(self.both(name, a, b, Type::Bool)?), Type::Bool)),
            (op::LOGICAL_OR, false, [a, b]) => Ok((Node::Or(self.both(name, a, b, Type::Bool)?), Type::Bool)),
            (op::LOGICAL_NOT, false, [a]) => Ok((Node::Not(self.one(name, a, Type::Bool)?), Type::Bool)),
            (op::NEGATE, false, [a]) => match self.node(a)? {
                (node, of) if of.is_number() => Ok((Node::Negate(Box::new(node)), of)),
                (_, of) => Err(mismatch(name, &[of])),
            },
            (op::CONDITIONAL, false, [condition, then, otherwise]) => self.conditional(condition, then, otherwise),
            (op::IN, false, [a, list]) => self.within(a, list),
            ("size", _, [a]) => Ok((Node::Size(self.one(name, a, Type::Text)?), Type::Int)),
            ("int", false, [a]) => match self.node(a)? {
                (node, of) if of.is_number() => Ok((Node::ToInt(Box::new(node)), Type::Int)),
                (_, of) => Err(mismatch(name, &[of])),
            },
            ("double", false, [a]) => match self.node(a)? {
                (node, of) if of.is_number() => Ok((Node::ToDouble(Box::new(node)), Type::Double)),
                (_, of) => Err(mismatch(name, &[of])),
            },
            (_, true, [a, b]) if let Some(search) = search(name) => {
                Ok((Node::Search(search, self.both(name, a, b, Type::Text)?), Type::Bool))
            }
            (_, false, [a, b]) if let Some(comparison) = comparison(name) => self.compare(name, comparison, a, b),
            (_, false, [a, b]) if let Some(arithmetic) = arithmetic(name) => self.calculate(name, arithmetic, a, b),
            _ => unsupported(&format!("{} with {} arguments", spelled(name), arguments.len())),
        }
    }

    fn conditional(&mut self, condition: &IdedExpr, then: &IdedExpr, otherwise: &IdedExpr) -> Result<Typed, Error> {
        let condition = self.one(op::CONDITIONAL, condition, Type::Bool)?;
        let (then, of) = self.node(then)?;
        let (otherwise, other) = self.node(otherwise)?;
        if of != other {
            return Err(mismatch(op::CONDITIONAL, &[Type::Bool, of, other]));
        }
        Ok((Node::If(Box::new([*condition, then, otherwise])), of))
    }

    fn compare(&mut self, name: &str, comparison: Comparison, a: &IdedExpr, b: &IdedExpr) -> Result<Typed, Error> {
        let ((a, of_a), (b, of_b)) = (self.node(a)?, self.node(b)?);
        if !are_comparable(of_a, of_b) {
            return Err(mismatch(name, &[of_a, of_b]));
        }
        Ok((Node::Compare(comparison, Box::new([a, b])), Type::Bool))
    }

    fn calculate(&mut self, name: &str, arithmetic: Arithmetic, a: &IdedExpr, b: &IdedExpr) -> Result<Typed, Error> {
        let ((a, of), (b, of_b)) = (self.node(a)?, self.node(b)?);
        let has_remainder = of == Type::Int || arithmetic != Arithmetic::Remainder;
        if !of.is_number() || of != of_b || !has_remainder {
            return Err(mismatch(name, &[of, of_b]));
        }
        Ok((Node::Calculate(arithmetic, Box::new([a, b])), of))
    }

    fn within(&mut self, a: &IdedExpr, list: &IdedExpr) -> Result<Typed, Error> {
        let (node, of) = self.node(a)?;
        let Expr::List(list) = &list.expr else {
            return unsupported("in without a list of values");
        };
        let mut literals = Vec::with_capacity(list.elements.len());
        for element in &list.elements {
            let Expr::Literal(value) = &element.expr else {
                return unsupported("a list with anything but plain values");
            };
            let literal = literal(value)?;
            if !are_comparable(of, literal.of()) {
                return Err(mismatch(op::IN, &[of, literal.of()]));
            }
            literals.push(literal);
        }
        Ok((Node::In(Box::new(node), literals.into()), Type::Bool))
    }

    fn one(&mut self, name: &str, a: &IdedExpr, wanted: Type) -> Result<Box<Node>, Error> {
        match self.node(a)? {
            (node, of) if of == wanted => Ok(Box::new(node)),
            (_, of) => Err(mismatch(name, &[of])),
        }
    }

    fn both(&mut self, name: &str, a: &IdedExpr, b: &IdedExpr, wanted: Type) -> Result<Box<[Node; 2]>, Error> {
        let ((a, of_a), (b, of_b)) = (self.node(a)?, self.node(b)?);
        if (of_a, of_b) == (wanted, wanted) {
            Ok(Box::new([a, b]))
        } else {
            Err(mismatch(name, &[of_a, of_b]))
        }
    }
}

impl Literal {
    fn of(&self) -> Type {
        match self {
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Double(_) => Type::Double,
            Self::Text(_) => Type::Text,
        }
    }
}

fn literal(value: &LiteralValue) -> Result<Literal, Error> {
    match value {
        LiteralValue::Boolean(value) => Ok(Literal::Bool(*value.inner())),
        LiteralValue::Int(value) => Ok(Literal::Int(*value.inner())),
        LiteralValue::Double(value) => Ok(Literal::Double(*value.inner())),
        LiteralValue::String(value) => Ok(Literal::Text(value.inner().into())),
        LiteralValue::UInt(_) => unsupported("an unsigned number"),
        LiteralValue::Bytes(_) => unsupported("a byte string"),
        LiteralValue::Null => unsupported("null"),
    }
}

fn are_comparable(a: Type, b: Type) -> bool {
    a == b || (a.is_number() && b.is_number())
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        op::EQUALS => Comparison::Equal,
        op::NOT_EQUALS => Comparison::NotEqual,
        op::LESS => Comparison::Less,
        op::LESS_EQUALS => Comparison::LessOrEqual,
        op::GREATER => Comparison::Greater,
        op::GREATER_EQUALS => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn arithmetic(name: &str) -> Option<Arithmetic> {
    Some(match name {
        op::ADD => Arithmetic::Add,
        op::SUBSTRACT => Arithmetic::Subtract,
        op::MULTIPLY => Arithmetic::Multiply,
        op::DIVIDE => Arithmetic::Divide,
        op::MODULO => Arithmetic::Remainder,
        _ => return None,
    })
}

fn search(name: &str) -> Option<Search> {
    Some(match name {
        "contains" => Search::Contains,
        "startsWith" => Search::StartsWith,
        "endsWith" => Search::EndsWith,
        _ => return None,
    })
}

/// An operator as it is written, not as the parser calls it.
fn spelled(name: &str) -> String {
    name.replace('_', " ").replace('@', "").trim().to_owned()
}

fn mismatch(name: &str, types: &[Type]) -> Error {
    let types: Vec<&str> = types.iter().map(|of| of.name()).collect();
    Error::Types {
        what: spelled(name),
        types: types.join(" and "),
    }
}

fn unknown(name: &str) -> Error {
    let known = facts::FIELDS
        .iter()
        .map(|field| format!("{}.{}", field.owner, field.name));
    Error::Name {
        name: name.to_owned(),
        known: known.collect::<Vec<_>>().join(", "),
    }
}

fn unsupported<T>(what: &str) -> Result<T, Error> {
    Err(Error::Unsupported(what.to_owned()))
}
