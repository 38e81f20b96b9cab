//! What a file of principals lets in, and what it does not.

use super::*;

fn metadata(name: &'static str, value: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert(name, value.parse().expect("ascii"));
    metadata
}

fn by(auth: &Auth, name: &'static str, value: &str) -> Result<Caller, Failure> {
    auth.authenticate(&metadata(name, value), None)
}

/// A file that is gone when it is dropped.
struct File(PathBuf);

impl File {
    fn with(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-keys-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).expect("write");
        Self(path)
    }

    fn load(&self) -> Result<Auth, Error> {
        Auth::load(Some(&self.0), SocketAddr::from(([0, 0, 0, 0], 1)))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn hash(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(key: &str, rest: &str) -> String {
    format!("[[key]]\nsha256 = \"{}\"\n{rest}\n", hash(key))
}

#[test]
fn the_development_key_works_on_loopback_only() {
    let auth = Auth::load(None, SocketAddr::from(([127, 0, 0, 1], 50051))).expect("loopback");
    let caller = by(&auth, "authorization", "Bearer sluice-dev-key").expect("known");
    assert_eq!((&*caller.tenant, caller.roles.len()), ("dev", 4));
    assert!(by(&auth, "x-api-key", "sluice-dev-key").is_ok());
    let open = Auth::load(None, SocketAddr::from(([0, 0, 0, 0], 50051)));
    assert!(open.err().expect("refused").to_string().contains("SLUICE_API_KEYS"));
}

#[test]
fn a_file_replaces_the_development_key() {
    let file = File::with(&entry("secret-of-acme", "tenant = \"acme\"\nroles = [\"publish\"]"));
    let auth = file.load().expect("valid");
    let caller = by(&auth, "authorization", "bearer  secret-of-acme").expect("known");
    assert_eq!(&*caller.tenant, "acme");
    assert!(caller.must(Role::Publish).is_ok());
    let refused = caller.must(Role::Subscribe).expect_err("no such role");
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    assert!(refused.to_string().contains("subscribe"), "{refused}");
    for value in [
        "Bearer sluice-dev-key",
        "Bearer secret-of-acm",
        "Bearer ",
        "Bearer a.b.c",
        "Basic c2VjcmV0",
        "secret-of-acme",
    ] {
        let failure = by(&auth, "authorization", value).expect_err(value);
        assert_eq!(failure.code(), ErrorCode::Unauthenticated, "{value}");
    }
    assert!(auth.authenticate(&MetadataMap::new(), None).is_err());
}

#[test]
fn a_reload_revokes_who_is_gone_or_changed_and_nobody_else() {
    let both = entry("key-one", "tenant = \"one\"") + &entry("key-two", "tenant = \"two\"");
    let file = File::with(&both);
    let auth = file.load().expect("valid");
    let one = by(&auth, "x-api-key", "key-one").expect("known");
    let two = by(&auth, "x-api-key", "key-two").expect("known");
    std::fs::write(&file.0, "nonsense").expect("write");
    assert!(auth.reload().is_err());
    assert!(
        by(&auth, "x-api-key", "key-two").is_ok(),
        "a broken file changes nothing"
    );
    std::fs::write(&file.0, entry("key-one", "tenant = \"one\"")).expect("write");
    auth.reload().expect("valid");
    assert!(!one.revoked.is_cancelled() && two.revoked.is_cancelled());
    assert!(by(&auth, "x-api-key", "key-two").is_err());
    std::fs::write(&file.0, entry("key-one", "tenant = \"one\"\nroles = []")).expect("write");
    auth.reload().expect("valid");
    assert!(one.revoked.is_cancelled(), "a role was taken away");
    let confined = entry("key-one", "tenant = \"one\"\nroles = []\ntopics = [\"payments\"]");
    let before = by(&auth, "x-api-key", "key-one").expect("known");
    assert!(before.may_write("payments") && before.may_write("metric-events"));
    std::fs::write(&file.0, confined).expect("write");
    auth.reload().expect("valid");
    assert!(before.revoked.is_cancelled(), "a list of topics was added");
    let now = by(&auth, "x-api-key", "key-one").expect("known");
    assert!(now.may_write("payments") && !now.may_write("metric-events"));
}

#[test]
fn a_bad_file_is_refused_without_showing_a_key() {
    for text in [
        String::new(),
        "key = []".to_owned(),
        "[[key]]\nkey = \"long-enough-key\"\ntenant = \"acme\"\n".to_owned(),
        "[[key]]\nsha256 = \"abc\"\ntenant = \"acme\"\n".to_owned(),
        entry("k", ""),
        entry("k", "tenant = \"a/b\""),
        entry("k", "tenant = \"a\"\nroles = [\"everything\"]"),
        entry("k", "tenant = \"a\"") + &entry("k", "tenant = \"b\""),
        "[[certificate]]\ntenant = \"a\"\n".to_owned(),
        "[[issuer]]\nissuer = \"i\"\naudience = \"a\"\njwks = \"/no/such/file\"\n".to_owned(),
    ] {
        let error = File::with(&text).load().err().expect(&text).to_string();
        assert!(!error.contains("long-enough-key"), "{error}");
    }
}
