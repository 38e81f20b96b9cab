//! The tenants of an installation, and their keys.
//!
//! Comes before [`crate::stack`], whose gateway knows them all.

use std::fmt::Write as _;

use crate::credentials;

/// Tenants of a stack: a test takes one that no other test uses, so that tests can share a stack.
const TENANTS: usize = 100;

/// Who calls the gateway.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The tenant's name.
    pub name: String,
    /// An API key of the tenant.
    pub key: String,
}

impl Tenant {
    /// One of them.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn numbered(number: usize) -> Self {
        assert!(number < TENANTS, "a stack has only {TENANTS} tenants");
        Self {
            name: format!("tenant-{number:02}"),
            key: format!("key-of-tenant-{number:02}-in-tests"),
        }
    }

    /// A key of the tenant's whose only role is to review.
    pub fn reviewer_key(&self) -> String {
        format!("reviewer-{}", self.key)
    }
}

/// The file of all tenants' keys, as the gateway reads it.
pub fn keys() -> String {
    (0..TENANTS)
        .map(Tenant::numbered)
        .fold(String::new(), |mut text, tenant| {
            // Writing to a String cannot fail.
            let _written = writeln!(
                text,
                "[[key]]\nsha256 = \"{}\"\ntenant = \"{}\"\nname = \"{}\"\n",
                credentials::hash(&tenant.key),
                tenant.name,
                tenant.name
            );
            let _written = writeln!(
                text,
                "[[key]]\nsha256 = \"{}\"\ntenant = \"{}\"\nname = \"desk\"\nroles = [\"review\"]\n",
                credentials::hash(&tenant.reviewer_key()),
                tenant.name
            );
            text
        })
}
