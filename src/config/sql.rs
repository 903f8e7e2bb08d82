//! A warehouse that speaks PostgreSQL's protocol, as configured: where it is, who writes there, and in which schema each
//! tenant's tables are.

use std::collections::HashMap;

use super::{Gathering, Secret};
use crate::limits;
use crate::policy::Destination;
use crate::send::TenantId;

/// Stands in [`SqlSettings::schema`] for the tenant.
pub const TENANT: &str = "{tenant}";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlSettings {
    /// Its scheme says whether it is spoken to over TLS, which proves its name, or in the clear.
    pub server: Destination,
    pub database: String,
    pub user: String,
    pub password: Option<Secret>,
    /// A schema's name, with [`TENANT`] in it.
    pub schema: String,
    /// Of the tenants that the configuration names. No two of them have the same.
    pub schemas: HashMap<TenantId, String>,
    pub gathering: Gathering,
}

impl SqlSettings {
    /// Where the tenant's tables are. `Err`: why they are nowhere.
    pub fn schema_of(&self, tenant: &TenantId) -> Result<String, &'static str> {
        if let Some(schema) = self.schemas.get(tenant) {
            return Ok(schema.clone());
        }
        let schema = schema(&self.schema, tenant)?;
        if mapped(tenant) != tenant.as_str() {
            // Another tenant's id may come to the same.
            return Err("this tenant's id is no schema's name as it stands, and the operator has named none for it");
        }
        if self.schemas.values().any(|other| *other == schema) {
            return Err("another tenant has the schema that this one's id names");
        }
        Ok(schema)
    }

    /// Where the tenant's tables are, as a text that another place does not have.
    pub fn placed(&self, tenant: &TenantId) -> Option<String> {
        let Destination { host, port, .. } = &self.server;
        let schema = self.schema_of(tenant).ok()?;
        Some(format!("{}:{port} {:?} {schema:?}", host.text(), self.database))
    }
}

/// The id in the letters that a schema's name may have.
fn mapped(tenant: &TenantId) -> String {
    let letter = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '_') => c,
        _ => '_',
    };
    tenant.as_str().chars().map(letter).collect()
}

/// The schema that a tenant's id makes.
pub fn schema(template: &str, tenant: &TenantId) -> Result<String, &'static str> {
    let name = template.replace(TENANT, &mapped(tenant));
    if name.len() > limits::SQL_NAME_BYTES_MAX {
        return Err("this tenant's id makes a schema's name of more than 63 bytes");
    }
    if name.starts_with("pg_") || matches!(name.as_str(), "public" | "information_schema") {
        return Err("this tenant's id makes the name of a schema that is the database's own");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Host, Scheme};

    #[test]
    fn no_two_tenants_have_one_schema() {
        let named = ["Acme-GmbH", "b.c"].map(TenantId::new);
        let template = "t_{tenant}";
        let settings = SqlSettings {
            server: Destination { scheme: Scheme::PostgresTls, host: Host::Name("w.example.net".into()), port: 5432 },
            database: "events".to_owned(),
            user: "egressd".to_owned(),
            password: None,
            schema: template.to_owned(),
            schemas: named.iter().map(|id| (id.clone(), schema(template, id).expect("a schema"))).collect(),
            gathering: Gathering::default(),
        };
        for (tenant, wanted) in [
            ("Acme-GmbH", Some("t_acme_gmbh")),
            ("b.c", Some("t_b_c")),
            ("plain_1", Some("t_plain_1")),
            // Not named, and not a name as it stands.
            ("Other", None),
            ("x-y", None),
            ("\u{e9}", None),
            // What a named one has.
            ("acme_gmbh", None),
            ("b_c", None),
        ] {
            assert_eq!(settings.schema_of(&TenantId::new(tenant)).ok().as_deref(), wanted, "{tenant}");
        }
        for (template, tenant) in [("{tenant}", "pg_x"), ("{tenant}", "public"), ("{tenant}", "information_schema")] {
            assert!(schema(template, &TenantId::new(tenant)).is_err(), "{tenant}");
        }
        assert!(schema("{tenant}", &TenantId::new("x".repeat(64))).is_err());
    }
}
