//! What is wrong with a call, and where.

use crate::limits;

/// What makes a problem: its shape, or its size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Shape,
    TooLarge,
}

/// One problem of a call, with the place it stands at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeProblem {
    pub fault: Fault,
    /// RFC 6901 pointer into the call's body; empty: the whole body.
    pub pointer: String,
    pub detail: String,
    pub hint: Option<String>,
}

/// The place that is being read: a linked path, written out only where there is a problem.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    Root,
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl At<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Key(parent, key) => {
                parent.write(out);
                out.push('/');
                for c in key.chars().take(limits::ECHO_CHARS_MAX) {
                    match c {
                        '~' => out.push_str("~0"),
                        '/' => out.push_str("~1"),
                        c => out.push(c),
                    }
                }
            }
            Self::Index(parent, index) => {
                parent.write(out);
                out.push_str(&format!("/{index}"));
            }
        }
    }
}

/// Collects problems; bounded, so that a hostile call cannot make an answer many times its size.
#[derive(Default)]
pub(crate) struct Problems {
    list: Vec<ShapeProblem>,
    left_out: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, at: At<'_>, detail: impl Into<String>, hint: impl Into<Option<&'static str>>) {
        self.push(Fault::Shape, at, detail.into(), hint.into().map(str::to_owned));
    }

    pub(crate) fn too_large(&mut self, at: At<'_>, detail: String, hint: &str) {
        self.push(Fault::TooLarge, at, detail, Some(hint.to_owned()));
    }

    pub(super) fn push(&mut self, fault: Fault, at: At<'_>, detail: String, hint: Option<String>) {
        if self.list.len() >= limits::PROBLEMS_MAX {
            self.left_out += 1;
            return;
        }
        let mut pointer = String::new();
        at.write(&mut pointer);
        self.list.push(ShapeProblem { fault, pointer, detail, hint });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn into_list(mut self) -> Vec<ShapeProblem> {
        if self.left_out > 0 {
            self.list.push(ShapeProblem {
                fault: Fault::Shape,
                pointer: String::new(),
                detail: format!("{} more problems are not listed", self.left_out),
                hint: Some("mend these first".to_owned()),
            });
        }
        self.list
    }
}
