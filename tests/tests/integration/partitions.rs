//! More partitions and more lanes: an installation is stopped, its topics grow, and everything goes on.

use anyhow::{Context, Result, ensure};
use sluice_proto::pb::{self, SubscribeOpen};
use sluice_tests::run::on_own;
use sluice_tests::session::Session;
use sluice_tests::stack::{GROUP, Options, Stack};
use sluice_tests::subscribe::Stream;
use sluice_tests::{events, ledger};

const PAYMENTS: usize = 80;

fn grow(stack: &Stack, partitions: i32) -> Result<String> {
    let partitions = partitions.to_string();
    stack.sluicectl(&["topics", "grow", "--partitions", &partitions, "--group", GROUP])
}

#[test]
fn everything_goes_on_with_more_partitions_and_lanes() {
    on_own(Options::default(), async |stack| {
        let (tenant, url) = (stack.tenant(), stack.gateway_url());
        let old = stack.partitions();
        let desk = || SubscribeOpen {
            cursor: "desk".to_owned(),
            credit: 1_000,
            ..SubscribeOpen::default()
        };
        let payments: Vec<pb::Event> = (0..2 * PAYMENTS)
            .flat_map(|number| events::payments(&format!("account-{}", number % PAYMENTS), 1))
            .collect();
        let (before, after) = payments.split_at(PAYMENTS);
        let mut stream = Stream::open(&url, &tenant.key, desk()).await?;
        Session::open(&url, &tenant.key, "growing").await?.store(before).await?;
        stream.decisions(PAYMENTS).await?;
        stream.commit().await?;
        drop(stream);

        let refused = grow(stack, old + 2)
            .err()
            .context("it grew under a processor")?
            .to_string();
        ensure!(refused.contains("members"), "{refused}");
        stack.gateway()?.terminate().await?;
        stack.processor(0)?.terminate().await?;
        let refused = grow(stack, old - 1).err().context("it shrank")?.to_string();
        ensure!(refused.contains("partitions"), "{refused}");
        let page = grow(stack, old + 2)?;
        ensure!(page.contains(&stack.topic("payments")), "{page}");
        stack.start_processor_with(0, &[("SLUICE_LANES", "3")])?;
        stack.start_gateway()?;
        stack.ready().await?;

        // The cursor goes on behind what it had seen, and from the beginning of what is new.
        let mut stream = Stream::open(&url, &tenant.key, desk()).await?;
        Session::open(&url, &tenant.key, "grown").await?.store(after).await?;
        let mut decided = stream.decisions(PAYMENTS).await?;
        let mut published = events::ids(after);
        decided.sort_unstable();
        published.sort_unstable();
        assert_eq!(decided, published);
        let mut connection = ledger::connect(stack).await?;
        let count = "SELECT count(*), count(*) FILTER (WHERE part >= $1), count(DISTINCT event_id) FROM ledger";
        let (rows, moved, events): (i64, i64, i64) = sqlx::query_as(count).bind(old).fetch_one(&mut connection).await?;
        assert_eq!((rows, events), (2 * PAYMENTS as i64, rows));
        ensure!(moved > 0, "no payment went to a new partition");
        Ok(())
    });
}
