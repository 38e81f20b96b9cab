//! Owns the model of the consumer group: members, generations, assignments and offsets, as the classic protocol with an
//! eager assignor has them.
//!
//! Part of [`super::kafka`]. A member learns of a change when it polls; only then does it give its partitions up and join
//! again.

use std::collections::BTreeMap;

/// A member's place in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) member: u64,
    pub(super) generation: u32,
}

/// What a poll tells a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Nothing,
    /// It has to give everything up.
    Revoked,
    Assigned(Vec<i32>, Membership),
}

#[derive(Debug)]
struct Member {
    /// It takes part in the generation to come.
    joined: bool,
    /// It was told what it has.
    told: bool,
    /// It believes that it has partitions.
    holding: bool,
    parts: Vec<i32>,
}

/// The group of all lanes.
#[derive(Debug)]
pub(super) struct Group {
    partitions: i32,
    generation: u32,
    /// A generation is being agreed on; counts them, so that a deadline knows its own.
    pub(super) preparing: Option<u64>,
    rounds: u64,
    members: BTreeMap<u64, Member>,
    next_member: u64,
    pub(super) committed: BTreeMap<i32, i64>,
    /// Of open transactions, by the number of the transactional id.
    pub(super) pending: BTreeMap<usize, BTreeMap<i32, i64>>,
    /// When offsets were appended, pending and committed ones: a marker that is late takes nothing back.
    appended: BTreeMap<(Option<usize>, i32), u64>,
    appends: u64,
}

impl Group {
    pub(super) fn new(partitions: i32) -> Self {
        Self {
            partitions,
            generation: 0,
            preparing: None,
            rounds: 0,
            members: BTreeMap::new(),
            next_member: 1,
            committed: BTreeMap::new(),
            pending: BTreeMap::new(),
            appended: BTreeMap::new(),
            appends: 0,
        }
    }

    /// A new member, which has joined.
    pub(super) fn join(&mut self) -> u64 {
        let member = self.next_member;
        self.next_member += 1;
        self.members.insert(
            member,
            Member {
                joined: true,
                told: true,
                holding: false,
                parts: Vec::new(),
            },
        );
        self.prepare();
        member
    }

    /// A member left, or is given up.
    pub(super) fn remove(&mut self, member: u64) {
        if self.members.remove(&member).is_some() {
            self.prepare();
        }
    }

    pub(super) fn has(&self, member: u64) -> bool {
        self.members.contains_key(&member)
    }

    /// Whether this is a place in the current generation.
    pub(super) fn holds(&self, membership: Membership) -> bool {
        self.generation == membership.generation && self.has(membership.member)
    }

    fn prepare(&mut self) {
        if self.preparing.is_none() {
            self.rounds += 1;
            self.preparing = Some(self.rounds);
            for member in self.members.values_mut() {
                // Who has nothing has nothing to give up first.
                member.joined = !member.holding && member.told;
            }
        }
    }

    /// Whether everybody has joined.
    pub(super) fn is_complete(&self) -> bool {
        self.preparing.is_some() && self.members.values().all(|member| member.joined)
    }

    /// Ends the agreement: who has not joined is out.
    pub(super) fn complete(&mut self) {
        self.preparing = None;
        self.generation += 1;
        self.members.retain(|_, member| member.joined);
        let count = self.members.len();
        for (place, member) in self.members.values_mut().enumerate() {
            let mine = |part: &i32| *part as usize % count == place;
            member.parts = (0..self.partitions).filter(mine).collect();
            (member.joined, member.told, member.holding) = (false, false, true);
        }
    }

    /// What a member learns when it polls. `None`: it is a member no more.
    pub(super) fn poll(&mut self, id: u64) -> Option<Notice> {
        let (preparing, generation) = (self.preparing.is_some(), self.generation);
        let member = self.members.get_mut(&id)?;
        if preparing && !member.joined {
            member.joined = true;
            let held = member.holding && member.told;
            (member.holding, member.told) = (false, true);
            return Some(if held { Notice::Revoked } else { Notice::Nothing });
        }
        if !member.told {
            member.told = true;
            let membership = Membership { member: id, generation };
            return Some(Notice::Assigned(member.parts.clone(), membership));
        }
        Some(Notice::Nothing)
    }

    /// Takes the offsets of an open transaction.
    pub(super) fn offer(&mut self, id: usize, offsets: &[(i32, i64)]) {
        self.appends += 1;
        let pending = self.pending.entry(id).or_default();
        for (part, offset) in offsets {
            pending.insert(*part, *offset);
            self.appended.insert((Some(id), *part), self.appends);
        }
    }

    /// A transaction's offsets count from here on, or never will.
    pub(super) fn end(&mut self, id: usize, commit: bool) {
        for (part, offset) in self.pending.remove(&id).unwrap_or_default() {
            let at = self.appended.remove(&(Some(id), part)).unwrap_or(0);
            let newest = self.appended.entry((None, part)).or_default();
            if commit && at > *newest {
                *newest = at;
                self.committed.insert(part, offset);
            }
        }
    }
}
