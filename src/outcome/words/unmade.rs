//! Of sends that no receiver had a part in: what the policy or the operator stopped, what nobody waited for, and what
//! this node itself did not bring to an end.

use super::super::{Code, Failure, Outcome, Processed};
use super::EARLIER;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmadeCause<'a> {
    /// The policy's refusal, in its own words; `code` is the rule.
    Denied {
        code: Code,
        why: &'a str,
    },
    /// By the operator, after it was accepted.
    Suspended {
        reason: &'a str,
    },
    Expired,
    /// With its execution.
    Discarded,
    /// The process ended after the delivery had begun.
    Interrupted,
    /// What the store says of it is not all that was written.
    Doubted,
    /// It waited in a copy of an earlier moment.
    Restored,
    /// What was to be sent cannot be read back.
    Unreadable,
    /// The same of an event whose batch was tried before, and goes on without it.
    UnreadableSince,
    /// How it ended is known, and its record cannot be read; `place`: where the damage is.
    Damaged {
        code: Code,
        place: &'a str,
    },
    /// Nothing says who this node is to the store that the operator has set up.
    NoCredentials,
    /// A batch that may be where the configuration led it at an earlier try, and leads nothing any more.
    Moved,
    /// A defect of ours cut it off.
    Defect,
}

impl UnmadeCause<'_> {
    /// Of what cannot be read back, and `taken` by an earlier try of its batch, where it is in one.
    pub const fn unreadable(taken: Processed) -> Self {
        match taken {
            Processed::No => Self::Unreadable,
            Processed::Maybe | Processed::Yes => Self::UnreadableSince,
        }
    }

    pub(super) fn row(self) -> Failure {
        let row = |code, message: &str| Failure::new(code, None, message);
        match self {
            Self::Denied { code, why } => row(code, why),
            Self::Suspended { reason } => row(
                Code::Suspended,
                &format!("stopped by the operator: {reason}; ask the operator to lift it, and resend it then"),
            ),
            Self::Expired => row(
                Code::Expired,
                "it was not started within its `expires_in`; the node was too busy, or no source address was usable; resend it if it still matters, or give it more time",
            ),
            Self::Discarded => row(
                Code::Discarded,
                "its execution was discarded: it was never sent; resend it if it is wanted all the same",
            ),
            Self::Interrupted => row(
                Code::Interrupted,
                "the appliance stopped after this delivery had begun: the receiver may or may not have it, and it is never sent again; ask the receiver, and resend if it has not",
            ),
            Self::Doubted => row(
                Code::Interrupted,
                "part of this node's store is lost, which may have said that this send was made or called off: the receiver may or may not have it, and it is never sent again; ask the receiver, and resend if it has not",
            ),
            Self::Restored => row(
                Code::Interrupted,
                "it waited in a copy of the store that was restored: it may have been made since that copy was, so it is never sent from here; ask the receiver, and resend if it has not",
            ),
            Self::Unreadable => row(
                Code::Internal,
                "what was to be sent is unreadable on this node's disk: it was not sent; submit it again",
            )
            .but(Processed::No),
            Self::UnreadableSince => row(
                Code::Internal,
                &format!("this event is unreadable on this node's disk, and its batch goes on without it; {EARLIER}"),
            )
            .but(Processed::Maybe),
            Self::Damaged { code, place } => row(
                code,
                &format!("how this ended is known, and what was said of it is lost ({place}); tell the operator"),
            )
            .but(match code.outcome() {
                Outcome::Failed | Outcome::Interrupted => Processed::Maybe,
                _ => Processed::No,
            }),
            Self::NoCredentials => row(
                Code::Internal,
                "this node's credentials for the store cannot be read: nothing was sent; ask the operator",
            )
            .but(Processed::No),
            Self::Moved => row(
                Code::PolicyNotAllowed,
                "the batch was tried where this destination was set up before, and it is set up at another place now: it is brought to no second one; ask the operator, who can set it up there again, before you resend",
            ),
            Self::Defect => row(
                Code::Internal,
                "a defect in egressd ended this delivery; the receiver may or may not have it; ask the receiver before you resend, and report this with the send's id",
            ),
        }
    }
}
