//! Who may do what: TLS, client certificates, roles, signed tokens, and all of them changed while the gateway runs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use jsonwebtoken::Algorithm;
use serde_json::json;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::publish_request::Message as Publish;
use sluice_proto::pb::subscribe_request::Message as Ask;
use sluice_proto::pb::{self, SubscribeOpen};
use sluice_tests::credentials::{Authority, KeyPage, Signer, forged, hash, in_seconds};
use sluice_tests::run::on_prepared;
use sluice_tests::session::{Session, authorized, connect, publish_one};
use sluice_tests::stack::{Options, Stack};
use sluice_tests::subscribe::Stream;
use sluice_tests::{events, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

fn gateway_with(env: &[(&str, &Path)]) -> Options {
    let env = env
        .iter()
        .map(|(name, path)| ((*name).to_owned(), path.display().to_string()));
    Options {
        processors: 0,
        partitions: 1,
        gateway_env: env.collect(),
        ..Options::default()
    }
}

async fn start(stack: &mut Stack, env: &[(&str, &Path)]) -> Result<()> {
    for (name, path) in env {
        stack.set_env(name, &path.display().to_string());
    }
    stack.start_gateway()?;
    stack.ready().await
}

/// Publishes one event; `key` may be missing where the connection's certificate says who calls.
async fn publish(channel: Channel, key: Option<&str>) -> Result<(), Status> {
    let message = pb::PublishOneRequest {
        event: Some(events::payment("credentials")),
    };
    let request = match key {
        Some(key) => authorized(message, key),
        None => Request::new(message),
    };
    IngestServiceClient::new(channel).publish_one(request).await.map(drop)
}

async fn watch(channel: Channel, key: Option<&str>) -> Result<(), Status> {
    let message = pb::WatchRequest::default();
    let request = match key {
        Some(key) => authorized(message, key),
        None => Request::new(message),
    };
    DecisionServiceClient::new(channel).watch(request).await.map(drop)
}

/// A subscription whose client has said everything.
async fn half_closed(url: &str, key: &str) -> Result<Streaming<pb::SubscribeResponse>> {
    let open = Ask::Open(SubscribeOpen {
        credit: 1,
        ..SubscribeOpen::default()
    });
    let requests = tokio_stream::once(pb::SubscribeRequest { message: Some(open) });
    let mut client = DecisionServiceClient::new(connect(url).await?);
    Ok(client.subscribe(authorized(requests, key)).await?.into_inner())
}

/// Reads on until the stream ends with a status.
async fn refused<T>(stream: &mut Streaming<T>) -> Result<Status> {
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    };
    wait::soon("the stream ends", ended).await?.context("it ended well")
}

/// Whether a handshake ends with the alert `protocol_version`, where the client does not offer TLS 1.3.
async fn is_refused_below_tls_1_3(stack: &Stack) -> Result<bool> {
    // P-256, uncompressed points, ECDSA with SHA-256: all that TLS 1.2 wants to know.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    // TLS 1.2, a random of zeros, no session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    let body = [
        &[3, 3][..],
        &[0; 32],
        &[0],
        &[0, 2, 0xc0, 0x2b],
        &[1, 0],
        &[0, extensions.len() as u8],
        &extensions,
    ]
    .concat();
    let handshake = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    let record = [&[22, 3, 1, 0, handshake.len() as u8][..], &handshake].concat();
    let mut socket = TcpStream::connect(stack.gateway_address()).await?;
    socket.write_all(&record).await?;
    let mut answer = [0; 7];
    wait::soon("the handshake is answered", socket.read_exact(&mut answer)).await??;
    println!("the answer to TLS 1.2 is {answer:?}");
    // An alert of two bytes, fatal.
    Ok(answer[0] == 21 && answer[5..] == [2, 70])
}

fn lacks(answer: Result<(), Status>, role: &str) -> Result<()> {
    let status = answer.err().context("it was allowed")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    let info = status.get_details_error_info().context("no ErrorInfo")?;
    ensure!(
        info.reason == "PERMISSION_DENIED" && info.metadata["role"] == role,
        "{info:?}"
    );
    Ok(())
}

#[test]
fn certificates_keys_and_roles_say_who_may_do_what() {
    on_prepared(gateway_with(&[]), async |stack| {
        let directory = stack.directory().to_owned();
        let authority = Authority::new()?;
        let (certificate, key) = authority.sign("gateway", &["localhost"])?.write(&directory)?;
        let (roots, keys) = (directory.join("roots.pem"), directory.join("principals.toml"));
        std::fs::write(&roots, &authority.pem)?;
        let principals = format!(
            "[[certificate]]\nsubject = \"CN=checkout\"\ntenant = \"acme\"\nroles = [\"publish\"]\n\
             [[certificate]]\nsan = \"desk.acme.example\"\ntenant = \"acme\"\nroles = [\"subscribe\"]\n\
             [[key]]\nsha256 = \"{}\"\ntenant = \"acme\"\n",
            hash("a-key-of-acme")
        );
        std::fs::write(&keys, &principals)?;
        let env = [
            ("SLUICE_API_KEYS", &*keys),
            ("SLUICE_TLS_CERT", &certificate),
            ("SLUICE_TLS_KEY", &key),
            ("SLUICE_TLS_CLIENT_CA", &roots),
        ];
        start(stack, &env).await?;
        let url = format!("https://localhost:{}", stack.gateway_address().port());

        let publisher = authority.sign("checkout", &[])?;
        let channel = authority.connect(&url, Some(&publisher)).await?;
        publish(channel.clone(), None).await?;
        lacks(watch(channel, None).await, "subscribe")?;
        let desk = authority.sign("somebody", &["desk.acme.example"])?;
        let channel = authority.connect(&url, Some(&desk)).await?;
        watch(channel.clone(), None).await?;
        lacks(publish(channel, None).await, "publish")?;

        let nobody = authority.sign("nobody", &[])?;
        let unknown = publish(authority.connect(&url, Some(&nobody)).await?, None).await;
        assert_eq!(
            unknown.err().context("nobody was let in")?.code(),
            Code::Unauthenticated
        );
        let stranger = Authority::new()?.sign("checkout", &[])?;
        let forged = async {
            publish(authority.connect(&url, Some(&stranger)).await?, None)
                .await
                .map_err(Into::into)
        };
        let forged: Result<()> = forged.await;
        ensure!(forged.is_err(), "a certificate of another authority was accepted");
        let plain = publish_one(&stack.gateway_url(), "a-key-of-acme", events::payment("plain")).await;
        ensure!(
            plain.is_err() || plain.is_ok_and(|answer| answer.is_err()),
            "plaintext was accepted"
        );
        ensure!(
            is_refused_below_tls_1_3(stack).await?,
            "a client that knows nothing newer than TLS 1.2 was served"
        );
        let by_key = authority.connect(&url, None).await?;
        publish(by_key.clone(), Some("a-key-of-acme")).await?;

        // All of it changes while the gateway runs: the key is gone, and the certificate is another authority's.
        let mut client = DecisionServiceClient::new(by_key);
        let request = authorized(pb::WatchRequest::default(), "a-key-of-acme");
        let mut open = client.watch(request).await?.into_inner();
        open.message().await?.context("no first answer")?;
        let newer = Authority::new()?;
        newer.sign("gateway", &["localhost"])?.write(&directory)?;
        std::fs::write(
            &keys,
            principals.replace(&hash("a-key-of-acme"), &hash("a-newer-key-of-acme")),
        )?;
        assert_eq!(refused(&mut open).await?.code(), Code::Unauthenticated);
        let channel = wait::until("the newer certificate is shown", async || {
            Ok(newer.connect(&url, None).await.ok())
        })
        .await?;
        publish(channel.clone(), Some("a-newer-key-of-acme")).await?;
        let old = publish(channel, Some("a-key-of-acme")).await;
        assert_eq!(old.err().context("the old key works")?.code(), Code::Unauthenticated);
        Ok(())
    });
}

#[test]
fn signed_tokens_say_who_calls_until_they_expire() {
    on_prepared(gateway_with(&[]), async |stack| {
        let directory = stack.directory().to_owned();
        let signers = [
            Signer::new("es", Algorithm::ES256)?,
            Signer::new("ed", Algorithm::EdDSA)?,
            Signer::new("rs", Algorithm::RS256)?,
        ];
        let forger = Signer::new("es", Algorithm::ES256)?;
        let keys = directory.join("principals.toml");
        std::fs::write(directory.join("jwks.json"), Signer::jwks(&signers.each_ref()))?;
        let issuer = "[[issuer]]\nissuer = \"https://id.example\"\naudience = \"sluice\"\njwks = \"jwks.json\"\n";
        std::fs::write(&keys, issuer)?;
        start(stack, &[("SLUICE_API_KEYS", &keys)]).await?;
        let url = stack.gateway_url();
        let claims = |seconds: i64| {
            json!({
                "iss": "https://id.example", "aud": "sluice", "sub": "checkout", "tenant": "acme",
                "roles": ["publish", "subscribe"], "exp": in_seconds(seconds),
            })
        };
        let one = async |token: String| publish_one(&url, &token, events::payment("token")).await;
        for signer in &signers {
            one(signer.token(&claims(60))?).await??;
        }
        let mut wrong = vec![forger.token(&claims(60))?, signers[0].token(&claims(-60))?];
        for (claim, value) in [
            ("aud", json!("another")),
            ("iss", json!("https://evil.example")),
            ("tenant", json!("a/b")),
            ("tenant", json!(null)),
            ("exp", json!(null)),
        ] {
            let mut claims = claims(60);
            claims[claim] = value;
            wrong.push(signers[0].token(&claims)?);
        }
        let mut early = claims(600);
        early["nbf"] = in_seconds(300).into();
        wrong.push(signers[0].token(&early)?);
        wrong.extend(forged("rs", &Signer::jwks(&[&signers[2]]), &claims(60))?);
        for token in wrong {
            let status = one(token.clone()).await?.err().context("a wrong token was accepted")?;
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
            ensure!(!status.message().contains(&token), "{status:?}");
        }

        let mut confined = claims(60);
        confined["topics"] = json!(["metric-events"]);
        let status = one(signers[0].token(&confined)?).await?;
        let status = status
            .err()
            .context("a topic that is not on the list was published to")?;
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");

        // The gateway allows for 30 s of difference between clocks.
        let short = || signers[1].token(&claims(-26));
        let open = || SubscribeOpen {
            credit: 1,
            ..SubscribeOpen::default()
        };
        let mut ends = Stream::open(&url, &short()?, open()).await?;
        let mut lives = Stream::open(&url, &short()?, open()).await?;
        let mut half = half_closed(&url, &short()?).await?;
        let credentials = signers[2].token(&claims(600))?;
        lives.send(Ask::Refresh(pb::SubscribeRefresh { credentials })).await?;
        let status = ends.refused().await?;
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert_eq!(refused(&mut half).await?.code(), Code::Unauthenticated);
        lives.progress().await?;
        let mut another = claims(600);
        another["sub"] = "somebody-else".into();
        let credentials = signers[0].token(&another)?;
        lives.send(Ask::Refresh(pb::SubscribeRefresh { credentials })).await?;
        assert_eq!(lives.refused().await?.code(), Code::Unauthenticated);
        Ok(())
    });
}

#[test]
fn an_issuers_keys_are_fetched_and_follow_its_page() {
    on_prepared(gateway_with(&[]), async |stack| {
        let [first, second] = [
            Signer::new("first", Algorithm::ES256)?,
            Signer::new("second", Algorithm::EdDSA)?,
        ];
        let mut page = KeyPage::serve(Signer::jwks(&[&first])).await?;
        let keys = stack.directory().join("principals.toml");
        let entry = format!(
            "[[issuer]]\nissuer = \"https://id.example\"\naudience = \"sluice\"\njwks = \"{}\"\ntenant = \"acme\"\n",
            page.url
        );
        std::fs::write(&keys, entry)?;
        start(stack, &[("SLUICE_API_KEYS", &keys)]).await?;
        let url = stack.gateway_url();
        let claims = |seconds: i64, roles: &[&str]| {
            json!({
                "iss": "https://id.example", "aud": ["other", "sluice"], "sub": "checkout", "roles": roles,
                "exp": in_seconds(seconds),
            })
        };
        let publish = &["publish"];
        let one = async |token: String| publish_one(&url, &token, events::payment("page")).await;
        one(first.token(&claims(600, publish))?).await??;
        let unknown = one(second.token(&claims(600, publish))?).await?;
        assert_eq!(unknown.err().context("it was let in")?.code(), Code::Unauthenticated);

        // A session goes on beyond its token with a fresh one, which the issuer signs with its newer key.
        page.change(Some(Signer::jwks(&[&second])));
        wait::until("the newer key is known", async || {
            Ok(one(second.token(&claims(600, publish))?).await?.ok())
        })
        .await?;
        let gone = one(first.token(&claims(600, publish))?).await?;
        assert_eq!(gone.err().context("the old key works")?.code(), Code::Unauthenticated);
        let short = second.token(&claims(-26, publish))?;
        let mut ends = Session::open(&url, &short, "ends").await?;
        let mut lives = Session::open(&url, &short, "lives").await?;
        let refresh = async |session: &Session, claims: &serde_json::Value| {
            let credentials = second.token(claims)?;
            session.send(Publish::Refresh(pb::PublishRefresh { credentials })).await
        };
        refresh(&lives, &claims(600, publish)).await?;
        let ended = ends.end().await?.err().context("it ended well")?;
        assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
        lives.store(&[events::payment("page")]).await?;
        refresh(&lives, &claims(600, &["publish", "subscribe"])).await?;
        let ended = lives.end().await?.err().context("other roles were taken over")?;
        assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");

        // What is known outlives a page that cannot be read.
        page.change(None);
        page.asked_again().await?;
        page.asked_again().await?;
        one(second.token(&claims(600, publish))?).await??;
        Ok(())
    });
}
