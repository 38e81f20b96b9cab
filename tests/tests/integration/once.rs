//! A decision that stands in the topic twice, as a transaction that ended late would leave it, is delivered once: from the
//! ring, to a reader that catches up, to a subscription that is resumed, and by a gateway that has just started.

use anyhow::Result;
use sluice_proto::decision::Decision;
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::{self, SubscribeOpen};
use sluice_tests::decisions::{decision, id, write};
use sluice_tests::run::on_own;
use sluice_tests::stack::{self, Options, Stack, Tenant};
use sluice_tests::subscribe::Stream;

fn from(start: Option<Start>) -> SubscribeOpen {
    SubscribeOpen {
        start,
        credit: 1_000,
        ..SubscribeOpen::default()
    }
}

/// Offsets of payments, with those repeated that a late transaction would write again.
fn written(tenant: &Tenant, offsets: &[i64]) -> Vec<Decision> {
    let each = offsets.iter().map(|offset| decision(tenant, *offset as u128, *offset));
    each.collect()
}

fn ids(range: std::ops::Range<u128>) -> Vec<String> {
    range.map(id).collect()
}

async fn restart(stack: &mut Stack) -> Result<()> {
    stack.start_gateway()?;
    stack.ready().await
}

#[test]
fn a_source_offset_that_is_not_above_the_high_watermark_is_dropped_everywhere() {
    let options = Options {
        processors: 0,
        partitions: 1,
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        let (url, key) = (stack.gateway_url(), tenant.key.clone());
        let mut live = Stream::open(&url, &key, from(None)).await?;
        write(stack, &tenant, &written(&tenant, &[0, 1, 2, 1, 2, 3])).await?;
        assert_eq!(live.decisions(4).await?, ids(0..4), "from the ring");
        let metrics = stack::page(stack.gateway_admin(), "/metrics").await?;
        assert!(
            metrics.contains("sluice_gateway_decisions_repeated_total 2"),
            "{metrics}"
        );

        // Resumed within the ring, after the token the same again.
        let token = live.token.clone();
        write(stack, &tenant, &written(&tenant, &[3, 2, 4])).await?;
        let mut resumed = Stream::open(&url, &key, from(Some(Start::Token(token.clone())))).await?;
        assert_eq!(resumed.decisions(1).await?, ids(4..5), "resumed from the ring");

        // After a restart the ring is empty: the same is read from Kafka, with what the token has seen.
        restart(stack).await?;
        let mut resumed = Stream::open(&url, &key, from(Some(Start::Token(token)))).await?;
        assert_eq!(resumed.decisions(1).await?, ids(4..5), "resumed behind the ring");
        let earliest = || from(Some(Start::Earliest(pb::Earliest {})));
        let mut all = Stream::open(&url, &key, earliest()).await?;
        assert_eq!(all.decisions(5).await?, ids(0..5), "caught up");

        // A gateway that has just started knows what its subscribers may have seen elsewhere.
        let mut live = Stream::open(&url, &key, from(None)).await?;
        write(stack, &tenant, &written(&tenant, &[4, 3, 5])).await?;
        for (what, stream) in [
            ("from now on", &mut live),
            ("going on", &mut all),
            ("resumed", &mut resumed),
        ] {
            assert_eq!(stream.decisions(1).await?, ids(5..6), "{what}");
        }
        Ok(())
    });
}
