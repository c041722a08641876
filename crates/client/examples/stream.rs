//! An answer as it comes.

use std::time::Duration;

use tandem_client::{ChatEvent, Client, Error};

/// Asks one question and passes the answer on as it comes. Returns the number of tokens.
pub async fn listen(url: &str, question: &str, mut hear: impl FnMut(&str)) -> Result<u32, Error> {
    let client = Client::builder(url).timeout(Duration::from_secs(300)).build()?;
    let mut events = client.chat().user(question).temperature(0.0).max_tokens(200).stream().await?;
    let mut tokens = 0;
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Content(text) => hear(&text),
            ChatEvent::Finished(finished) => tokens = finished.usage.unwrap_or_default().generated_tokens,
            // Its reasoning, for one.
            _ => {}
        }
    }
    Ok(tokens)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let tokens =
        listen("http://127.0.0.1:50051", "How many letters are in the word tandem?", |text| print!("{text}")).await?;
    println!("\n({tokens} tokens)");
    Ok(())
}
