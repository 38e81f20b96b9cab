//! Positions that retention has overtaken: told with the earliest one, or fallen back from as the caller chose.

use anyhow::{Context, Result};
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::{ExpiredPosition, SubscribeOpen};
use sluice_tests::decisions::{decision, delete_before, id, write};
use sluice_tests::run::on_own;
use sluice_tests::stack::Options;
use sluice_tests::subscribe::Stream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn only_the_gateway() -> Options {
    Options {
        processors: 0,
        partitions: 1,
        ..Options::default()
    }
}

fn open(start: Option<Start>, cursor: &str, on_expired: ExpiredPosition) -> SubscribeOpen {
    SubscribeOpen {
        start,
        cursor: cursor.to_owned(),
        credit: 1_000,
        on_expired: on_expired.into(),
        ..SubscribeOpen::default()
    }
}

async fn refusal(url: &str, key: &str, open: SubscribeOpen) -> Result<Status> {
    let error = Stream::open(url, key, open).await.err().context("it was opened")?;
    error.downcast_ref::<Status>().cloned().context("no status")
}

#[test]
fn an_expired_position_is_told_or_falls_back_as_chosen() {
    on_own(only_the_gateway(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let refuse = ExpiredPosition::Unspecified;
        let mut first = Stream::open(&url, &tenant.key, open(None, "old", refuse)).await?;
        let ten: Vec<_> = (0..10).map(|number| decision(&tenant, number, number as i64)).collect();
        write(stack, &tenant, &ten[..5]).await?;
        first.decisions(5).await?;
        first.commit().await?;
        let token = Some(Start::Token(first.token.clone()));
        drop(first);
        write(stack, &tenant, &ten[5..]).await?;
        delete_before(stack, 8).await?;
        // A gateway that was there has the decisions in its ring still; one that starts has not.
        stack.start_gateway()?;
        stack.ready().await?;

        for open in [
            open(token.clone(), "", refuse),
            open(None, "old", ExpiredPosition::Refuse),
        ] {
            let status = refusal(&url, &tenant.key, open).await?;
            assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
            let info = status.get_details_error_info().context("no ErrorInfo")?;
            assert_eq!(info.reason, "TOKEN_INVALID");
            let earliest = base64(&info.metadata["earliest_token"])?;
            let start = Some(Start::Token(earliest.into()));
            let mut stream = Stream::open(&url, &tenant.key, self::open(start, "", refuse)).await?;
            assert_eq!(stream.decisions(2).await?, [id(8), id(9)]);
        }
        for cursor in ["", "old"] {
            let start = token.clone().filter(|_| cursor.is_empty());
            let open = open(start, cursor, ExpiredPosition::Earliest);
            let mut stream = Stream::open(&url, &tenant.key, open).await?;
            assert!(stream.ready.fell_back);
            assert_eq!(stream.decisions(2).await?, [id(8), id(9)]);
        }
        let mut stream = Stream::open(&url, &tenant.key, open(token, "", ExpiredPosition::Latest)).await?;
        assert!(stream.ready.fell_back);
        write(stack, &tenant, &[decision(&tenant, 10, 10)]).await?;
        assert_eq!(stream.decisions(1).await?, [id(10)]);
        Ok(())
    });
}

/// Decodes Base64 as any client would.
fn base64(text: &str) -> Result<Vec<u8>> {
    use ::base64::Engine as _;
    Ok(::base64::engine::general_purpose::STANDARD.decode(text)?)
}
