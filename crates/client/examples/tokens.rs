//! Tokens instead of text.

use tandem_client::{Client, Error, GenerateEvent};

/// Goes on from a text, token by token. Returns each token's text with its log-probability.
pub async fn go_on(url: &str, text: &str, tokens: u32) -> Result<Vec<(String, f32)>, Error> {
    let client = Client::new(url)?;
    let prompt = client.tokenize(text).await?;
    let mut events = client.generate(prompt).temperature(0.0).max_tokens(tokens).logprobs(0).stream().await?;
    let mut generated = Vec::new();
    while let Some(event) = events.next().await {
        if let GenerateEvent::Token(token) = event? {
            let logprob = token.logprob.map_or(f32::NAN, |logprob| logprob.logprob);
            generated.push((client.detokenize(vec![token.token]).await?, logprob));
        }
    }
    Ok(generated)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    for (token, logprob) in go_on("http://127.0.0.1:50051", "Once upon a time", 20).await? {
        println!("{logprob:8.3} {token:?}");
    }
    Ok(())
}
